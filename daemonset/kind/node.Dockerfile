# A kind node that is a Flox node from its first moment: the payload is in the image, nothing is installed at start.
#   docker build --file daemonset/kind/node.Dockerfile --build-arg PRODUCT=flox-node:0.1.0 --tag flox-kind-node .
#   kind create cluster --image flox-kind-node
ARG BASE=kindest/node:v1.36.1
ARG PRODUCT=flox-node:0.1.0

FROM ${BASE} AS node

# The product's own image has the payload, and the program that places it into the node's files.
FROM ${PRODUCT} AS baked
COPY --from=node / /node
RUN flox-node install --image-build --host-root /node --payload /payload

# kind's image stays what it is, with what an install adds to a node.
FROM node
COPY --from=baked /node/nix /nix
COPY --from=baked /node/opt/flox-node /opt/flox-node
COPY --from=baked /node/var/lib/flox-node /var/lib/flox-node
COPY --from=baked /node/etc /etc
