#!/bin/bash
#PBS -N hello
#PBS -l nodes=1:ppn=1,walltime=00:10:00
# Says where it runs, and leaves a file in the home directory.
echo "hello from guest $(hostname), kernel $(uname -r)"
echo "DMI UUID $(cat /sys/class/dmi/id/product_uuid)"
id
echo "job $PBS_JOBID on $PBS_NP vCPU, in $(pwd), submitted from $PBS_O_WORKDIR"
echo "node file:" $(cat "$PBS_NODEFILE")
df -h --output=source,target "$HOME" /workspace /opt 2>/dev/null || df -h "$HOME" /workspace /opt
echo "written in guest $(hostname)" >"$HOME/hello-from-guest.txt"
