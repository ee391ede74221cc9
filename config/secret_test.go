package config

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
)

func TestSecretNeverPrints(t *testing.T) {
	const canary = "canary-5f1e"
	type inside struct {
		Name   string
		Secret Secret
		Ptr    *Secret
		List   []Secret
		Map    map[string]Secret
		Any    any
	}
	s := Secret(canary)
	in := inside{"name", s, &s, []Secret{s}, map[string]Secret{"a": s}, s}
	values := map[string]any{
		"plain": s, "struct": in, "pointer": &in, "list": []Secret{s}, "map": map[string]Secret{"a": s},
		"proxy":    Proxy{MonitorPassword: s},
		"database": &Database{Password: s, MonitorPassword: s},
		"nested": struct {
			DB     *Database
			Proxy  *Proxy
			Config *Config
		}{
			&Database{Password: s}, &Proxy{MonitorPassword: s},
			&Config{Databases: map[string]*Database{"a": {Password: s}}},
		},
		"config": &Config{Proxy: Proxy{MonitorPassword: s}, Databases: map[string]*Database{"a": {Password: s}}},
	}
	hidden := []string{canary, fmt.Sprintf("%x", canary), fmt.Sprintf("%X", canary), fmt.Sprintf("% x", canary), fmt.Sprintf("%d", []byte(canary))}
	check := func(t *testing.T, how, out string) {
		t.Helper()
		for _, h := range hidden {
			if strings.Contains(out, h) {
				t.Errorf("%s shows the secret: %s", how, out)
			}
		}
	}
	for name, v := range values {
		t.Run(name, func(t *testing.T) {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%t", "%10s", "%T %v"} {
				args := []any{v}
				if verb == "%T %v" {
					args = []any{v, v}
				}
				check(t, verb, fmt.Sprintf(verb, args...))
			}
			check(t, "Sprint", fmt.Sprint(v))
			check(t, "Sprintln", fmt.Sprintln(v))
			check(t, "Errorf", fmt.Errorf("login: %v", v).Error())
			for _, h := range []func(*bytes.Buffer) slog.Handler{
				func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
				func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
			} {
				var b bytes.Buffer
				log := slog.New(h(&b))
				log.Info("login", "value", v, slog.Group("g", slog.Any("value", v)))
				log.With("value", v).Info("login")
				check(t, "slog", b.String())
			}
			if out, err := json.Marshal(v); err != nil {
				t.Error(err)
			} else {
				check(t, "json", string(out))
			}
			var b bytes.Buffer
			if err := toml.NewEncoder(&b).Encode(map[string]any{"v": v}); err == nil {
				check(t, "toml", b.String())
			}
			if out, err := xml.Marshal(v); err == nil {
				check(t, "xml", string(out))
			}
		})
	}
	if s.Reveal() != canary || s.Empty() || !Secret("").Empty() {
		t.Error("Reveal or Empty is wrong")
	}
	if got := s.String() + s.GoString() + s.LogValue().String(); got != stars+stars+stars {
		t.Errorf("found %q", got)
	}
}
