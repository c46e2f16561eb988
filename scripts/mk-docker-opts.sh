#!/bin/sh
# Translates flannel's subnet.env into options for the Docker daemon.
#
# Reads  FLANNEL_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ, from the file or the environment.
# Writes DOCKER_OPT_BIP, DOCKER_OPT_MTU, DOCKER_OPT_IPMASQ, one line each, and all DOCKER_OPT_* together in one
#        variable, in a form that shells can source and systemd takes as EnvironmentFile.

usage() {
	cat >&2 <<-END
		usage: mk-docker-opts.sh [-f FILE] [-d FILE] [-i] [-c] [-m] [-k KEY]

		  -f FILE  flannel's file to read (default /run/flannel/subnet.env); may be missing
		  -d FILE  file to write (default /run/docker_opts.env)
		  -i       write one variable for each option
		  -c       write one variable with all options; with neither -i nor -c, both forms
		  -k KEY   name of that one variable (default DOCKER_OPTS); what it holds already comes first
		  -m       leave --ip-masq out
	END
	exit 1
}

# In double quotes, so that sourcing gives the value back unchanged.
quote() {
	printf '"%s"' "$(printf '%s\n' "$1" | sed 's/[\\"$`]/\\&/g')"
}

# Names begin with mk_ because the file that is sourced may set anything else.
mk_from=/run/flannel/subnet.env
mk_to=/run/docker_opts.env
mk_key=DOCKER_OPTS
mk_each=
mk_all=
mk_ipmasq=yes
while getopts :f:d:k:icmh mk_option; do
	case $mk_option in
	f) mk_from=$OPTARG ;;
	d) mk_to=$OPTARG ;;
	k) mk_key=$OPTARG ;;
	i) mk_each=yes ;;
	c) mk_all=yes ;;
	m) mk_ipmasq= ;;
	*) usage ;;
	esac
done
if [ -z "$mk_each$mk_all" ]; then
	mk_each=yes
	mk_all=yes
fi
case $mk_key in
'' | [0-9]* | *[!A-Za-z0-9_]*)
	echo "mk-docker-opts.sh: -k is '$mk_key': expected the name of a variable" >&2
	exit 1
	;;
esac

eval "mk_before=\${$mk_key-}"
if [ -f "$mk_from" ]; then
	case $mk_from in
	*/*) . "$mk_from" ;;
	# Without a slash the shell would search PATH for it.
	*) . "./$mk_from" ;;
	esac
	# Where the file is also the output, the key in it is what the run before wrote.
	if [ "$mk_from" != "$mk_to" ]; then
		eval "mk_before=\${$mk_key-}"
	fi
fi

if [ -n "$FLANNEL_SUBNET" ]; then
	DOCKER_OPT_BIP=--bip=$FLANNEL_SUBNET
fi
if [ -n "$FLANNEL_MTU" ]; then
	DOCKER_OPT_MTU=--mtu=$FLANNEL_MTU
fi
if [ -n "$mk_ipmasq" ] && [ -n "$FLANNEL_IPMASQ" ]; then
	# Where flannel masquerades, Docker must not.
	case $FLANNEL_IPMASQ in
	true) DOCKER_OPT_IPMASQ=--ip-masq=false ;;
	false) DOCKER_OPT_IPMASQ=--ip-masq=true ;;
	*)
		echo "mk-docker-opts.sh: FLANNEL_IPMASQ is '$FLANNEL_IPMASQ': expected true or false" >&2
		exit 1
		;;
	esac
fi

mk_newline='
'
mk_content=
mk_together=${mk_before:+$mk_before }
for mk_name in $(set | sed -n 's/^\([A-Za-z_][A-Za-z0-9_]*\)=.*/\1/p' | grep DOCKER_OPT_ | LC_ALL=C sort -u); do
	# A line of a long value may only look like a variable.
	eval "mk_set=\${$mk_name+yes} mk_value=\${$mk_name-}"
	if [ -n "$mk_set" ]; then
		mk_together="$mk_together $mk_value"
		if [ -n "$mk_each" ]; then
			mk_content=$mk_content$mk_name=$(quote "$mk_value")$mk_newline
		fi
	fi
done
if [ -n "$mk_all" ]; then
	mk_content=$mk_content$mk_key=$(quote "$mk_together")$mk_newline
fi
printf %s "$mk_content" >"$mk_to" || exit 1

# A route to this subnet by way of another host means that it is not ours alone; Docker would take it all the same.
if [ -n "$FLANNEL_SUBNET" ]; then
	mk_address=${FLANNEL_SUBNET%/*}
	mk_octet=${mk_address##*.}
	case $mk_octet in
	'' | 0?* | *[!0-9]*) ;;
	*)
		mk_base=${mk_address%.*}.$((mk_octet - 1))/${FLANNEL_SUBNET#*/}
		mk_route=$(ip route show 2>/dev/null | grep -E "^$(printf %s "$mk_base" | sed 's/\./\\./g') (.* )?via ")
		if [ -n "$mk_route" ]; then
			echo "mk-docker-opts.sh: $mk_base is routed to another host: $mk_route" >&2
			exit 1
		fi
		;;
	esac
fi
