"""What flox-node is in a cluster: its objects, what it writes on Node objects, slots, and the API that both go through.

Nothing here touches a node. The DaemonSet's `reporter` uses it with its own token and no client library; the commands
`flox-node cluster ...` use it with the user's kubeconfig.
"""
