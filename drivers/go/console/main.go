// Program console uses the console with pgx, in each of its query modes.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

func main() {
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		if err := session(context.Background(), mode); err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
	}
}

func session(ctx context.Context, mode pgx.QueryExecMode) error {
	cfg, err := pgx.ParseConfig("")
	if err != nil {
		return err
	}
	cfg.DefaultQueryExecMode = mode
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	var version string
	if err := conn.QueryRow(ctx, "SHOW VERSION").Scan(&version); err != nil {
		return err
	}
	fmt.Println("version", strings.HasPrefix(version, "PgBouncer 1.25"))
	rows, err := conn.Query(ctx, "SHOW DATABASES")
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		values, err := row.Values()
		if err != nil {
			return "", err
		}
		return fmt.Sprint(values[0]), nil
	})
	if err != nil {
		return err
	}
	slices.Sort(names)
	fmt.Println("databases", strings.Join(names, " "))
	_, err = conn.Exec(ctx, "SHOW NONSENSE")
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		return fmt.Errorf("SHOW NONSENSE: %w", err)
	}
	fmt.Println("refused", e.Code)
	return nil
}
