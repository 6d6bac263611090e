package node

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"
)

// Policy is what the shim needs of the administrator's policy; keys that it does not know are the Python side's.
type Policy struct {
	InnerRuntime string `json:"inner_runtime"`
	Realise      struct {
		TimeoutS float64 `json:"timeout_s"`
	} `json:"realise"`
}

const (
	defaultDeadline = 90 * time.Second
	// The kubelet gives up on a sandbox after four minutes; an answer after that reaches nobody.
	longestDeadline = 230 * time.Second
)

// LoadPolicy reads the policy. No file is the default policy; a damaged one is the default policy and an error.
func LoadPolicy() (Policy, error) {
	var policy Policy
	file, err := os.Open(Path(policyFile))
	if os.IsNotExist(err) {
		return policy, nil
	}
	if err != nil {
		return policy, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxPolicySize))
	if err != nil {
		return policy, err
	}
	if err := json.Unmarshal(data, &policy); err != nil {
		return Policy{}, fmt.Errorf("%s is damaged (%w): write it again with `flox-node policy apply`", policyFile, err)
	}
	return policy, nil
}

// Deadline is how long a sandbox waits for its environment.
func (p Policy) Deadline() time.Duration {
	seconds := p.Realise.TimeoutS
	switch {
	case seconds <= 0:
		return defaultDeadline
	case seconds > longestDeadline.Seconds():
		return longestDeadline
	}
	return time.Duration(seconds * float64(time.Second))
}
