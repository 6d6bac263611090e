module flox.test/kubelet

go 1.24
