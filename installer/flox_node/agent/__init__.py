"""The DaemonSet's two loops: `node` works on the node and knows no API server, `reporter` knows no node.

Both stay resident with little more than the standard library; what needs more is a child process that ends.
"""
