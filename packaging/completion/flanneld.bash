# bash completion for flanneld
_flanneld() {
    local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" name value
    COMPREPLY=()
    if [[ $current == = ]]; then name="$previous=" value=
    elif [[ $previous == = ]]; then name="${COMP_WORDS[COMP_CWORD-2]}=" value=$current
    elif [[ $previous == -* && $current != -* ]]; then name=$previous value=$current
    fi
    case "$name" in
        --etcd-api|-etcd-api|--etcd-api=|-etcd-api=) COMPREPLY=($(compgen -W "auto v3 v2" -- "$value")) ;;
        --etcd-keyfile|-etcd-keyfile|--etcd-keyfile=|-etcd-keyfile=) COMPREPLY=($(compgen -f -- "$value")) ;;
        --etcd-certfile|-etcd-certfile|--etcd-certfile=|-etcd-certfile=) COMPREPLY=($(compgen -f -- "$value")) ;;
        --etcd-cafile|-etcd-cafile|--etcd-cafile=|-etcd-cafile=) COMPREPLY=($(compgen -f -- "$value")) ;;
        --iface|-iface|--iface=|-iface=) COMPREPLY=($(compgen -W "$(cd /sys/class/net && echo *)" -- "$value")) ;;
        --subnet-file|-subnet-file|--subnet-file=|-subnet-file=) COMPREPLY=($(compgen -f -- "$value")) ;;
        --ip-masq=|-ip-masq=) COMPREPLY=($(compgen -W "true false" -- "$value")) ;;
        --ip-masq-fully-random-disable=|-ip-masq-fully-random-disable=) COMPREPLY=($(compgen -W "true false" -- "$value")) ;;
        --iptables-forward-rules=|-iptables-forward-rules=) COMPREPLY=($(compgen -W "true false" -- "$value")) ;;
        --ip-blackhole-route=|-ip-blackhole-route=) COMPREPLY=($(compgen -W "true false" -- "$value")) ;;
        --kube-subnet-mgr=|-kube-subnet-mgr=) COMPREPLY=($(compgen -W "true false" -- "$value")) ;;
        --kubeconfig-file|-kubeconfig-file|--kubeconfig-file=|-kubeconfig-file=) COMPREPLY=($(compgen -f -- "$value")) ;;
        --net-config-path|-net-config-path|--net-config-path=|-net-config-path=) COMPREPLY=($(compgen -f -- "$value")) ;;
        --set-node-network-unavailable=|-set-node-network-unavailable=) COMPREPLY=($(compgen -W "true false" -- "$value")) ;;
        --version=|-version=) COMPREPLY=($(compgen -W "true false" -- "$value")) ;;
        *) COMPREPLY=($(compgen -W "--etcd-endpoints= --etcd-prefix= --etcd-api= --etcd-keyfile= --etcd-certfile= --etcd-cafile= --etcd-username= --etcd-password= --iface= --iface-regex= --iface-can-reach= --public-ip= --public-ipv6= --subnet-file= --subnet-lease-renew-margin= --ip-masq --ip-masq-fully-random-disable --iptables-forward-rules --iptables-resync= --ip-blackhole-route --kube-subnet-mgr --kube-api-url= --kube-annotation-prefix= --kubeconfig-file= --net-config-path= --set-node-network-unavailable --healthz-ip= --healthz-port= -v= --vmodule= --log_backtrace_at= --version" -- "$current"))
           [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace ;;
    esac
}
complete -F _flanneld flanneld
