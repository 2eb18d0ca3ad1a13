#!/bin/bash
#PBS -N fails
#PBS -l nodes=1:ppn=1,walltime=00:10:00
# Ends with exit status 3, and so does the job.
echo "about to fail" >&2
exit 3
