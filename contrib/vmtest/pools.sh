#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Runs in the guest until it is killed, without a pause: pools of 2 MiB pages grow and
# shrink on both nodes, pages are used and given back, HVO goes off and on.

node=/sys/devices/system/node/node
pool=hugepages/hugepages-2048kB/nr_hugepages
turn=0
echo 4 >/proc/sys/vm/nr_overcommit_hugepages
while :; do
    turn=$((turn + 1))
    echo $((turn * 7 % 24)) >${node}0/$pool
    echo $((turn * 5 % 16)) >${node}1/$pool
    fallocate -l $((turn % 6 * 2 + 4))M /huge2m/used 2>/dev/null
    [ $((turn % 2)) = 0 ] && rm -f /huge2m/used
    case $((turn % 9)) in
    6) echo 0 >/proc/sys/vm/hugetlb_optimize_vmemmap ;;
    8) echo 1 >/proc/sys/vm/hugetlb_optimize_vmemmap ;;
    esac
done
