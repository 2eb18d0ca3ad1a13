#!/bin/sh
# An example for IP_TO_MAC_SCRIPT in vtorque.yaml, with CUSTOM_IP_MAPPING: true.
# Copy it to /etc/vtorque, owned by root and writable by nobody else.
#
#   ip-mapping.sh NODE GUESTS NUMBER
#
# prints the one address, IPv4 or IPv6, of a guest, and nothing else: NODE is the
# short host name of the node that it runs on, GUESTS how many guests the job
# has there, NUMBER which of these it is, from 1. Everything else fails the
# start with a line for root: another output, an exit status that is not 0, or
# more than 10 seconds. The guest has to get this address by itself, and it is
# believed only when it proves its SSH host key.
#
# Here node17 has the guests 10.77.17.1 to 10.77.17.99.
set -eu
node=$1 guests=$2 number=$3
host=$(printf '%s\n' "$node" | sed -n 's/^[a-z-]*0*\([1-9][0-9]*\)$/\1/p')
if [ -z "$host" ] || [ "$host" -gt 254 ]; then
    echo "no addresses for guests of $node" >&2
    exit 1
fi
if [ "$number" -gt 99 ]; then
    echo "$guests guests on $node, addresses for 99" >&2
    exit 1
fi
echo "10.77.$host.$number"
