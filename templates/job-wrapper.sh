#!/bin/sh
@DIRECTIVES@
exec {{ command }} "$@"
