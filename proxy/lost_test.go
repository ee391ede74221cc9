package proxy_test

import (
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// What a client hears whose server dies says what is known of its work.
func TestLostSaysWhatIsKnown(t *testing.T) {
	c := realCluster(t)
	if err := c.Exec(t.Context(), "CREATE TABLE IF NOT EXISTS fates (a int); GRANT ALL ON fates TO public"); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		before []string // answered
		last   string   // not answered; "" is nothing
		detail string
	}{
		{"open transaction", []string{"BEGIN", "INSERT INTO fates VALUES (1)"}, "", "rolled back"},
		{"statement in it", []string{"BEGIN"}, "INSERT INTO fates VALUES (1)", "rolled back"},
		{"COMMIT", []string{"BEGIN", "INSERT INTO fates VALUES (1)"}, "COMMIT", "whether it was committed is not known"},
		{"COMMIT among others", []string{"BEGIN"}, "INSERT INTO fates VALUES (1); COMMIT", "whether it was committed is not known"},
		{"alone", nil, "INSERT INTO fates VALUES (1)", "whether it took effect is not known"},
	} {
		for _, extended := range []bool{false, true} {
			if extended && strings.Contains(tt.last, ";") {
				continue
			}
			name, send := tt.name+", simple", pgtest.Query
			if extended {
				name, send = tt.name+", extended", func(sql string) []byte { return pgtest.Extended(sql) }
			}
			t.Run(name, func(t *testing.T) {
				relay := pgtest.NewRelay(t, c.Primary.Addr())
				h := newHarness(t, harnessOptions{Servers: []string{relay.Addr()}})
				cl := h.Client(t)
				for _, sql := range tt.before {
					cl.Send(send(sql))
					cl.ReadUntilReady()
				}
				if tt.last != "" {
					cl.Query("SELECT 1") // so that the relay has a connection
					relay.Set(pgtest.ToClient, pgtest.Fault{Blackhole: true})
					passed := relay.Bytes(pgtest.ToServer)
					cl.Send(send(tt.last))
					eventually(t, 10*time.Second, "the statement to pass", func() bool { return relay.Bytes(pgtest.ToServer) > passed })
				}
				relay.ResetAll()
				msgs := cl.ExpectEOF()
				var e *wire.Error
				for _, m := range msgs {
					if m.Type == wire.ErrorResponse {
						e = m.Err()
					}
				}
				if e == nil || e.Code != wire.CodeConnectionFailure || !strings.Contains(e.Detail, tt.detail) {
					t.Errorf("%+v, want a detail with %q", e, tt.detail)
				}
			})
		}
	}
}
