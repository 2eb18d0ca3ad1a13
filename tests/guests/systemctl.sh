#!/bin/sh
# As much of systemd as a job's guest asks for.
units=/etc/systemd/system
case $1 in
start)
    shift
    for unit; do
        [ -e "$units/$unit" ] || continue
        echo "$unit" >>/run/started
        sed -n 's/^ExecStart=//p' "$units/$unit" | setsid sh >/dev/console 2>&1 &
    done
    ;;
poweroff)
    while read -r unit; do
        sed -n 's/^ExecStop=//p' "$units/$unit"
    done 2>/dev/null </run/started | sh
    # What still runs must not hold a disk.
    kill -TERM -1
    sleep 0.2
    kill -KILL -1
    umount /data
    sync
    exec busybox poweroff -f
    ;;
esac
