#!/bin/sh
# Runs one of the site's own scripts as root: prologue* when accounts and mounts
# are there and before the guest is ready, epilogue* while it shuts down.
#
#   site-script NAME
#
# What it prints goes to a log and to the console. When a prologue fails, so does
# the start; when an epilogue does, that is all that happens.
own=/usr/local/lib/vtorque
state=/run/vtorque
{ read -r job && read -r user && read -r rank; } <"$own/site.words"
case $1 in
# Otherwise the guest's set-up has failed, and said so.
prologue*) [ -e "$state/held" ] || exit 0 ;;
esac
mkdir -p /var/log
log=/var/log/vtorque-$1.log
"$own/site/$1" "$job" "$user" "$rank" </dev/null >"$log" 2>&1
status=$?
{
    sed "s/^/site's $1: /" "$log"
    echo "site's $1: exit status $status"
} >/dev/console
case $1 in
prologue*)
    [ "$status" -ne 0 ] || exit 0
    printf "failed: the site's %s ended with status %s\n" "$1" "$status" >"$state/status.new"
    rm "$state/held"
    mv "$state/status.new" "$state/status"
    ;;
esac
