#!/bin/sh
# For -vm vm_prologue=: runs in every guest before the job, with the job's environment.
echo "preparing $(hostname), rank $VTORQUE_RANK"
