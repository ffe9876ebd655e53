#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Runs in the guest until it is killed: pools grow and shrink, pages are used and given
# back, HVO goes off and on. The sizes are named by the arguments: 2048 and 1048576.

pools=/sys/kernel/mm/hugepages
turn=0
while :; do
    turn=$((turn + 1))
    for size in "$@"; do
        most=40
        # An emulated guest takes long to move 1 GiB out of the way.
        [ "$size" = 1048576 ] && most=1
        echo $((turn * 7 % (most + 1))) >"$pools/hugepages-${size}kB/nr_hugepages"
    done
    fallocate -l $((turn % 8 * 2 + 2))M /huge2m/used 2>/dev/null
    [ $((turn % 3)) = 0 ] && rm -f /huge2m/used
    [ $((turn % 5)) = 0 ] && echo $((turn / 5 % 2)) >/proc/sys/vm/hugetlb_optimize_vmemmap
    echo "$turn" >/tmp/churn.turn
    usleep 200000
done
