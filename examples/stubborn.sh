#!/bin/bash
#PBS -N stubborn
#PBS -l nodes=1:ppn=1,walltime=00:10:00
# Ignores the polite signal of qdel; the batch system's kill delay ends it.
trap 'echo "not yet"' TERM
echo "up"
touch "$HOME/stubborn-is-up" # for whoever waits to delete it
while :; do sleep 1; done
