package checkout

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sort"
	"strconv"
	"strings"
)

// ManifestOf writes the manifest in a lock as TOML. Where it includes other environments, it is the one before those
// were merged into it.
func ManifestOf(lock []byte) ([]byte, error) {
	var locked struct {
		Manifest map[string]any `json:"manifest"`
		Compose  *struct {
			Composer map[string]any `json:"composer"`
		} `json:"compose"`
	}
	decoder := json.NewDecoder(bytes.NewReader(lock))
	decoder.UseNumber()
	if err := decoder.Decode(&locked); err != nil {
		return nil, fmt.Errorf("manifest.lock: %w", err)
	}
	manifest := locked.Manifest
	if locked.Compose != nil && locked.Compose.Composer != nil {
		manifest = locked.Compose.Composer
	}
	var text strings.Builder
	for _, key := range keys(manifest) { // plain values before the first table
		if _, isTable := manifest[key].(map[string]any); !isTable && manifest[key] != nil {
			fmt.Fprintf(&text, "%s = %s\n", name(key), value(manifest[key]))
		}
	}
	for _, key := range keys(manifest) {
		table, isTable := manifest[key].(map[string]any)
		if !isTable || len(table) == 0 {
			continue
		}
		fmt.Fprintf(&text, "\n[%s]\n", name(key))
		for _, key := range keys(table) {
			if table[key] != nil {
				fmt.Fprintf(&text, "%s = %s\n", name(key), value(table[key]))
			}
		}
	}
	return []byte(text.String()), nil
}

func keys(of map[string]any) []string {
	found := make([]string, 0, len(of))
	for key := range of {
		found = append(found, key)
	}
	sort.Strings(found)
	return found
}

func name(key string) string {
	const bare = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
	if key != "" && strings.Trim(key, bare) == "" {
		return key
	}
	return quote(key, false)
}

func value(of any) string {
	switch of := of.(type) {
	case string:
		return quote(of, strings.Contains(of, "\n"))
	case json.Number:
		return of.String()
	case bool:
		return strconv.FormatBool(of)
	case []any:
		parts := make([]string, 0, len(of))
		for _, each := range of {
			parts = append(parts, value(each))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case map[string]any:
		parts := make([]string, 0, len(of))
		for _, key := range keys(of) {
			if of[key] != nil {
				parts = append(parts, name(key)+" = "+value(of[key]))
			}
		}
		return "{" + strings.Join(parts, ", ") + "}"
	}
	return `""` // null in a list, which no manifest has
}

// quote writes a basic string, or a multi-line one, which only values can be: a hook is one.
func quote(text string, multiline bool) string {
	var quoted strings.Builder
	for _, r := range text {
		switch {
		case r == '\n' && multiline:
			quoted.WriteRune(r)
		case r == '"' || r == '\\':
			quoted.WriteString(`\` + string(r))
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&quoted, `\u%04X`, r)
		default:
			quoted.WriteRune(r)
		}
	}
	if multiline {
		return "\"\"\"\n" + quoted.String() + `"""`
	}
	return `"` + quoted.String() + `"`
}
