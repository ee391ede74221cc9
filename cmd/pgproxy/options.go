package main

import (
	"fmt"
	"strings"
)

// bouncerOptions are PgBouncer's options.
type bouncerOptions struct {
	daemon, quiet, reboot, version, help bool
	verbose                              int
	user, file                           string
}

// longOptions are the long forms; user takes an argument.
var longOptions = map[string]byte{
	"daemon": 'd', "quiet": 'q', "reboot": 'R', "version": 'V', "help": 'h', "verbose": 'v', "user": 'u',
}

// parseOptions reads a command line as getopt_long does: short options may be
// joined, long ones shortened, and options may follow the file.
func parseOptions(args []string) (*bouncerOptions, error) {
	o := &bouncerOptions{}
	var files []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		value := func(joined string, has bool) (string, error) {
			if has {
				return joined, nil
			}
			if i++; i == len(args) {
				return "", fmt.Errorf("option requires an argument: %s", arg)
			}
			return args[i], nil
		}
		switch {
		case arg == "--":
			files = append(files, args[i+1:]...)
			i = len(args)
		case strings.HasPrefix(arg, "--"):
			name, joined, has := strings.Cut(arg[2:], "=")
			c, err := longOption(name)
			if err == nil && has && c != 'u' {
				err = fmt.Errorf("option does not take an argument: --%s", name)
			}
			if err != nil {
				return nil, err
			}
			if c == 'u' {
				if o.user, err = value(joined, has); err != nil {
					return nil, err
				}
				continue
			}
			_ = o.set(c)
		case len(arg) > 1 && arg[0] == '-':
			for j := 1; j < len(arg); j++ {
				if arg[j] == 'u' {
					u, err := value(arg[j+1:], j+1 < len(arg))
					if err != nil {
						return nil, err
					}
					o.user = u
					break
				}
				if err := o.set(arg[j]); err != nil {
					return nil, err
				}
			}
		default:
			files = append(files, arg)
		}
	}
	switch {
	case o.version || o.help:
	case len(files) == 0:
		return nil, fmt.Errorf("no configuration file specified")
	case len(files) > 1:
		return nil, fmt.Errorf("more than one configuration file: %q", files)
	default:
		o.file = files[0]
	}
	return o, nil
}

// longOption finds the option that a name stands for, or begins.
func longOption(name string) (byte, error) {
	if c, ok := longOptions[name]; ok {
		return c, nil
	}
	var found []string
	for long := range longOptions {
		if name != "" && strings.HasPrefix(long, name) {
			found = append(found, long)
		}
	}
	switch len(found) {
	case 0:
		return 0, fmt.Errorf("unrecognized option: --%s", name)
	case 1:
		return longOptions[found[0]], nil
	}
	return 0, fmt.Errorf("option is ambiguous: --%s", name)
}

func (o *bouncerOptions) set(c byte) error {
	switch c {
	case 'd':
		o.daemon = true
	case 'q':
		o.quiet = true
	case 'R':
		o.reboot = true
	case 'V':
		o.version = true
	case 'h':
		o.help = true
	case 'v':
		o.verbose++
	default:
		return fmt.Errorf("invalid option: -%c", c)
	}
	return nil
}
