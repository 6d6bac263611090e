module flox.dev/flox-node/shim

go 1.22
