"""`flox-node-agent node|reporter`: the two containers of the DaemonSet's pod."""
