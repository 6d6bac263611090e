package pod

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

const (
	maxPart       = 128
	maxGeneration = 9 // digits
)

// Reference names an environment of FloxHub: `owner/name`, or `owner/name:generation`. It is read once, and then handed
// on as it is; flox_node/environments/reference.py reads the same grammar.
type Reference struct {
	Environment string // owner/name
	Generation  int    // 0: the live one
}

// ParseReference reads `owner/name[:generation]`. The error says what is wrong with it.
func ParseReference(text string) (Reference, error) {
	if before, after, found := strings.Cut(text, "@"); found {
		if right, err := ParseReference(before + ":" + after); err == nil {
			return Reference{}, fmt.Errorf("a generation is written with a colon, %s", right)
		}
		return Reference{}, errors.New("`@` belongs to no name")
	}
	environment, generation, pinned := strings.Cut(text, ":")
	owner, name, found := strings.Cut(environment, "/")
	switch {
	case !found:
		return Reference{}, errors.New("it names no owner")
	case !validPart(owner) || !validPart(name):
		return Reference{}, errors.New("owner and name are letters, digits, `.`, `_` and `-`, begin with a letter or a " +
			"digit, and hold no `..` and no `.` or `.lock` at the end")
	case !pinned:
		return Reference{Environment: environment}, nil
	case !validGeneration(generation):
		return Reference{}, errors.New("a generation is a positive number")
	}
	number, err := strconv.Atoi(generation)
	return Reference{Environment: environment, Generation: number}, err
}

// String is the form that ParseReference reads.
func (r Reference) String() string {
	if r.Generation == 0 {
		return r.Environment
	}
	return r.Environment + ":" + strconv.Itoa(r.Generation)
}

// Name is what the environment is called without its owner.
func (r Reference) Name() string { return r.Environment[strings.IndexByte(r.Environment, '/')+1:] }

// MarshalJSON writes the form that ParseReference reads.
func (r Reference) MarshalJSON() ([]byte, error) { return json.Marshal(r.String()) }

// UnmarshalJSON reads it.
func (r *Reference) UnmarshalJSON(data []byte) error {
	var text string
	err := json.Unmarshal(data, &text)
	if err == nil {
		*r, err = ParseReference(text)
	}
	return err
}

// validPart refuses above all what git refuses as the name of a branch.
func validPart(part string) bool {
	return len(part) <= maxPart && validWord(part) && !strings.Contains(part, "..") &&
		!strings.HasSuffix(part, ".") && !strings.HasSuffix(part, ".lock")
}

func validGeneration(digits string) bool {
	if len(digits) > maxGeneration || digits == "" || digits[0] == '0' {
		return false
	}
	for i := 0; i < len(digits); i++ {
		if digits[i] < '0' || digits[i] > '9' {
			return false
		}
	}
	return true
}
