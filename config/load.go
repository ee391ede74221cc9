package config

import (
	"fmt"
	"os"
)

// Load reads and checks a file. The error joins one *Error for each fault.
func Load(path string) (*Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return Parse(path, text)
}
