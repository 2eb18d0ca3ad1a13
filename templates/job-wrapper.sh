#!/bin/sh
@DIRECTIVES@
exec @COMMAND@ "$@"
