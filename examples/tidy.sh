#!/bin/sh
# For -vm vm_epilogue=: runs in every guest after the job.
echo "tidying $(hostname), rank $VTORQUE_RANK"
