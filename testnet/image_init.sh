#!/bin/busybox sh
# The first process of a real guest: modules, addresses, then the program that ends flows.
#
# Kernel command line: tabi.name=NAME, and per interface ethN tabi.ethN.addrs=PREFIX[,PREFIX...], tabi.ethN.gw4=ADDRESS,
# tabi.ethN.gw6=ADDRESS. tabi.dirty=MiB/s is the program's.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r m; do
	insmod /lib/modules/$m || echo "guest: no module $m"
done </lib/modules/order

cd /proc/sys/net
echo 0 >ipv6/conf/default/accept_dad # an address that is tentative for a second sends nothing
echo 0 >ipv6/conf/all/accept_dad
echo 0 >ipv6/conf/default/autoconf # addresses come from the command line
echo 1 >ipv6/conf/default/accept_ra # the tunnel's MTU comes by it
echo 67108864 >core/rmem_max # whoever counts losses drops nothing
echo 67108864 >core/wmem_max
echo 20000 >core/netdev_max_backlog
echo "4096 131072 16777216" >ipv4/tcp_rmem
cd /

# value KEY: what the command line says of it.
value() {
	for word in $(cat /proc/cmdline); do
		case $word in
		"$1"=*) echo "${word#*=}" ;;
		esac
	done
}

name=$(value tabi.name)
hostname "${name:-guest}"
ip link set lo up
for path in /sys/class/net/eth*; do
	nic=${path##*/}
	[ -e "$path" ] || continue
	echo 0 >/proc/sys/net/ipv6/conf/$nic/accept_dad
	echo 0 >/proc/sys/net/ipv6/conf/$nic/autoconf
	ip link set $nic up
	for addr in $(value tabi.$nic.addrs | tr , ' '); do
		ip addr add $addr dev $nic
	done
	gw4=$(value tabi.$nic.gw4)
	gw6=$(value tabi.$nic.gw6)
	[ -z "$gw4" ] || ip route add default via $gw4 dev $nic
	[ -z "$gw6" ] || ip -6 route add default via $gw6 dev $nic
done
echo "guest: up"

# The program ends only by a fault of its own; what it then said is on the console.
while :; do
	/bin/guest
	echo "guest: the program ended: $?"
	sleep 1
done
