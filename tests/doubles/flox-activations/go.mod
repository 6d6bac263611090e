module flox.dev/flox-node/tests/doubles/flox-activations

go 1.22
