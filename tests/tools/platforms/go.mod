module flox.test/platforms

go 1.24.2

require (
	dario.cat/mergo v1.0.2
	github.com/pelletier/go-toml/v2 v2.2.4
	sigs.k8s.io/yaml v1.6.0
)

require go.yaml.in/yaml/v2 v2.4.2 // indirect
