package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
)

// driversCache names the environment variable with the folder that the drivers of
// other languages are installed in. "make drivers" sets it; without it those
// programs are skipped.
const driversCache = "PGPROXY_DRIVERS"

// driversSetup names the one that says how long the drivers of one language may take
// to be installed; they are skipped if it is longer.
const driversSetup = "PGPROXY_DRIVERS_SETUP"

// language is one of the folders under drivers.
type language struct {
	name     string
	tools    []string // that must be in PATH
	setup    func(l *language) error
	programs []string
	console  string                                     // the program that uses the console; "" is none
	run      func(l *language, program string) []string // the command line
	extra    []string                                   // environment

	source, cache string // folders
	dir           string // where programs run
	until         time.Time
}

var languages = []*language{
	{
		name: "python", tools: []string{"python3"},
		programs: []string{"psycopg_program.py", "asyncpg_program.py", "sqlalchemy_program.py", "django_program.py"},
		console:  "console.py",
		setup: func(l *language) error {
			return l.once("requirements.txt", func() error {
				if err := l.command(l.cache, "python3", "-m", "venv", "venv"); err != nil {
					return err
				}
				return l.command(l.cache, "venv/bin/pip", "install", "--quiet", "--disable-pip-version-check", "-r", filepath.Join(l.source, "requirements.txt"))
			})
		},
		run: func(l *language, p string) []string {
			return []string{filepath.Join(l.cache, "venv/bin/python"), "-B", p}
		},
		extra: []string{"PYTHONUNBUFFERED=1"},
	},
	{
		name: "node", tools: []string{"node", "npm"},
		programs: []string{"pg.mjs", "postgresjs.mjs", "knex.mjs"},
		setup: func(l *language) error {
			// Node looks for packages beside the program.
			if err := l.refresh("work"); err != nil {
				return err
			}
			l.dir = filepath.Join(l.cache, "work")
			return l.once("package-lock.json", func() error {
				return l.command(l.dir, "npm", "ci", "--silent", "--no-audit", "--no-fund")
			})
		},
		run:   func(_ *language, p string) []string { return []string{"node", p} },
		extra: []string{"NODE_NO_WARNINGS=1"},
	},
	{
		name: "go", tools: []string{"go"}, programs: []string{"pgx", "sql"}, console: "console",
		setup: func(l *language) error {
			return l.command(l.source, "go", "build", "-o", l.cache+string(filepath.Separator), "./...")
		},
		run: func(l *language, p string) []string { return []string{filepath.Join(l.cache, p)} },
	},
	{
		name: "java", tools: []string{"java", "javac", "mvn"}, programs: []string{"Pgjdbc"}, console: "Console",
		setup: func(l *language) error {
			if err := l.refresh("work"); err != nil {
				return err
			}
			l.dir = filepath.Join(l.cache, "work")
			libs := filepath.Join(l.cache, "classpath")
			err := l.once("pom.xml", func() error {
				return l.command(l.dir, "mvn", "-q", "-B", "-Dmaven.repo.local="+filepath.Join(l.cache, "repository"),
					"-Dmdep.outputFile="+libs, "compile", "dependency:build-classpath")
			})
			if err != nil {
				return err
			}
			path, err := os.ReadFile(libs)
			if err != nil {
				return err
			}
			l.extra = []string{"CLASSPATH=classes:" + string(path)}
			return l.command(l.dir, "javac", "-d", "classes", "src/main/java/Pgjdbc.java", "src/main/java/Console.java")
		},
		run: func(_ *language, p string) []string { return []string{"java", "-XX:TieredStopAtLevel=1", p} },
	},
	{
		name: "rust", tools: []string{"cargo"}, programs: []string{"postgres", "sqlx"},
		setup: func(l *language) error {
			if err := l.refresh("work"); err != nil {
				return err
			}
			l.dir = filepath.Join(l.cache, "work")
			return l.command(l.dir, "cargo", "build", "--quiet", "--bins", "--target-dir", filepath.Join(l.cache, "target"))
		},
		run: func(l *language, p string) []string { return []string{filepath.Join(l.cache, "target/debug", p)} },
	},
}

// refresh copies the source into a folder of the cache, over what is there.
func (l *language) refresh(folder string) error {
	to := filepath.Join(l.cache, folder)
	return filepath.WalkDir(l.source, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(l.source, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), b, 0o600)
	})
}

// command runs one step of a setup.
func (l *language) command(dir, name string, args ...string) error {
	ctx, stop := context.WithDeadline(context.Background(), l.until)
	defer stop()
	if strings.Contains(name, "/") {
		name = filepath.Join(dir, name)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), l.extra...)
	cmd.WaitDelay = time.Second // of what it has started itself
	out, err := cmd.CombinedOutput()
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%s %s: it takes too long", name, strings.Join(args, " "))
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// once does what a lock file asks for, unless the cache has it from before.
func (l *language) once(lock string, do func() error) error {
	want, err := os.ReadFile(filepath.Join(l.source, lock))
	if err != nil {
		return err
	}
	stamp := filepath.Join(l.cache, "installed-"+filepath.Base(lock))
	if have, err := os.ReadFile(stamp); err == nil && bytes.Equal(have, want) {
		return nil
	}
	if err := do(); err != nil {
		return err
	}
	return os.WriteFile(stamp, want, 0o600)
}

// missing returns the first tool that is not there.
func (l *language) missing() string {
	for _, tool := range l.tools {
		if _, err := exec.LookPath(tool); errors.Is(err, exec.ErrNotFound) {
			return tool
		}
	}
	return ""
}

// output runs one program as user app, unless env says otherwise, and returns what
// it prints.
func (l *language) output(t *testing.T, port int, program string, env ...string) string {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 5*time.Minute)
	defer stop()
	line := l.run(l, program)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Dir = l.dir
	cmd.Env = append(os.Environ(), "PGHOST=127.0.0.1", "PGPORT="+strconv.Itoa(port), "PGUSER="+appUser, "PGPASSWORD="+appPassword,
		"PGDATABASE=app", "PGSSLMODE=disable", "PGAPPNAME=")
	cmd.Env = append(append(cmd.Env, l.extra...), env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		fmt.Fprintf(&out, "%s: %v\n", program, err)
	}
	return out.String()
}

// TestDriversPrograms runs the programs under drivers, each of which prints the
// same lines every time, directly and through the proxy: in transaction mode, over
// few server connections, with reads on the replicas.
func TestDriversPrograms(t *testing.T) {
	cache := os.Getenv(driversCache)
	if cache == "" {
		// They would have to be installed first, which "make test" has no time for.
		t.Skipf("SKIPPED: the drivers of other languages: \"make drivers\" runs them (%s is not set)", driversCache)
	}
	most := 10 * time.Minute
	if text := os.Getenv(driversSetup); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatal(err)
		}
		most = d
	}
	c := appCluster(t)
	for _, l := range languages {
		t.Run(l.name, func(t *testing.T) {
			if tool := l.missing(); tool != "" {
				// A developer need not have every language.
				t.Skipf("SKIPPED: %s is not installed", tool)
			}
			source, err := filepath.Abs(filepath.Join("../../drivers", l.name))
			if err != nil {
				t.Fatal(err)
			}
			l.source, l.dir, l.cache = source, source, filepath.Join(cache, l.name)
			if err := os.MkdirAll(l.cache, 0o700); err != nil {
				t.Fatal(err)
			}
			l.until = time.Now().Add(most)
			if err := l.setup(l); err != nil {
				// The registry is out of reach.
				t.Skipf("SKIPPED: its drivers cannot be installed: %v", err)
			}
			for _, p := range l.programs {
				t.Run(p, func(t *testing.T) { l.compare(t, c, p) })
			}
			if l.console != "" {
				t.Run(l.console, func(t *testing.T) { l.useConsole(t, c) })
			}
		})
	}
}

// compare runs one program twice.
func (l *language) compare(t *testing.T, c *pgtest.Cluster, program string) {
	want := l.output(t, c.Primary.Port, program)
	if err := c.WaitCaughtUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	a := startApp(t, c, "default_pool_size = 3", `consistency = "global"`)
	got := l.output(t, a.port(), program)
	if got != want {
		t.Errorf("through the proxy it prints\n%s\ndirectly\n%s", got, want)
	}
	if lines := strings.Count(want, "\n"); lines < 10 || strings.Contains(want, "exit status") || strings.Contains(want, "failed:") {
		t.Errorf("directly it fails:\n%s", want)
	}
}

// useConsole runs the program that logs in to the console, in each way that its
// driver has, and says the same each time.
func (l *language) useConsole(t *testing.T, c *pgtest.Cluster) {
	a := startApp(t, c, "", "")
	const want = "version true\ndatabases app pgbouncer\nrefused 08P01\n"
	for _, user := range []string{adminUser, statsUser} {
		got := l.output(t, a.port(), l.console, "PGUSER="+user, "PGPASSWORD="+user+" secret", "PGDATABASE=pgbouncer")
		if rest := strings.ReplaceAll(got, want, ""); got == "" || rest != "" {
			t.Errorf("as %s it prints\n%s", user, got)
		}
	}
}
