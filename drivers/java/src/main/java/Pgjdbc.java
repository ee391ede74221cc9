import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;
import java.io.StringReader;
import java.io.StringWriter;
import java.sql.BatchUpdateException;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.ResultSetMetaData;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Properties;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.copy.CopyManager;

/** pgjdbc, in each of its query modes, and HikariCP over it. */
public class Pgjdbc {
  interface Work {
    void run() throws Exception;
  }

  static void show(String what, Object value) {
    System.out.println(what + ": " + value);
  }

  static String code(Work w) throws Exception {
    try {
      w.run();
    } catch (SQLException e) {
      return e.getClass().getSimpleName() + " " + e.getSQLState();
    }
    return "no error";
  }

  static String url(String more) {
    var e = System.getenv();
    return "jdbc:postgresql://" + e.get("PGHOST") + ":" + e.get("PGPORT") + "/" + e.get("PGDATABASE") + "?sslmode=disable" + more;
  }

  static Connection connect(String more) throws SQLException {
    var p = new Properties();
    p.setProperty("user", System.getenv("PGUSER"));
    p.setProperty("password", System.getenv("PGPASSWORD"));
    return DriverManager.getConnection(url(more), p);
  }

  static List<List<Object>> rows(ResultSet r) throws SQLException {
    var out = new ArrayList<List<Object>>();
    ResultSetMetaData m = r.getMetaData();
    while (r.next()) {
      var row = new ArrayList<Object>();
      for (int i = 1; i <= m.getColumnCount(); i++) row.add(r.getString(i));
      out.add(row);
    }
    return out;
  }

  static List<List<Object>> query(Connection c, String sql, Object... params) throws SQLException {
    try (PreparedStatement s = c.prepareStatement(sql)) {
      for (int i = 0; i < params.length; i++) s.setObject(i + 1, params[i]);
      try (ResultSet r = s.executeQuery()) {
        return rows(r);
      }
    }
  }

  static void execute(Connection c, String sql) throws SQLException {
    try (Statement s = c.createStatement()) {
      s.execute(sql);
    }
  }

  public static void main(String[] args) throws Exception {
    for (String mode : List.of("", "&preferQueryMode=simple", "&preferQueryMode=extendedCacheEverything&prepareThreshold=1", "&prepareThreshold=0")) {
      show("MODE", mode);
      session(mode);
    }
    pool();
  }

  static void session(String mode) throws Exception {
    try (Connection c = connect(mode)) {
      show("connect", query(c, "SELECT current_database(), current_user"));
      execute(c, "DROP TABLE IF EXISTS jdbc_items; CREATE TABLE jdbc_items (id int PRIMARY KEY, name text)");

      // Prepared and unprepared.
      try (PreparedStatement s = c.prepareStatement("INSERT INTO jdbc_items VALUES (?, ?)")) {
        for (int i = 0; i < 10; i++) {
          s.setInt(1, i);
          s.setString(2, "name " + i);
          s.executeUpdate();
        }
      }
      try (PreparedStatement s = c.prepareStatement("SELECT name FROM jdbc_items WHERE id = ?")) {
        for (int i = 0; i < 8; i++) { // becomes a server-side statement at the fifth time
          s.setInt(1, i);
          try (ResultSet r = s.executeQuery()) {
            if (i % 4 == 3) show("prepared", rows(r));
          }
        }
      }
      show("unprepared", query(c, "SELECT count(*) FROM jdbc_items"));
      try (PreparedStatement s = c.prepareStatement("INSERT INTO jdbc_items VALUES (50, 'x')", Statement.RETURN_GENERATED_KEYS)) {
        s.executeUpdate();
        show("keys", rows(s.getGeneratedKeys()));
      }

      // Batches.
      try (PreparedStatement s = c.prepareStatement("INSERT INTO jdbc_items VALUES (?, 'batch')")) {
        for (int i = 100; i < 400; i++) {
          s.setInt(1, i);
          s.addBatch();
        }
        show("batch", Arrays.stream(s.executeBatch()).sum());
        for (int i = 400; i < 410; i++) {
          s.setInt(1, i == 405 ? 100 : i);
          s.addBatch();
        }
        c.setAutoCommit(false);
        try {
          s.executeBatch();
        } catch (BatchUpdateException e) {
          show("batch error", e.getSQLState());
        }
        c.rollback();
        c.setAutoCommit(true);
      }
      show("after it", query(c, "SELECT count(*) FROM jdbc_items WHERE id >= 400"));

      // Transactions.
      c.setAutoCommit(false);
      execute(c, "INSERT INTO jdbc_items VALUES (500, 'kept')");
      Savepoint sp = c.setSavepoint();
      show("unique", code(() -> execute(c, "INSERT INTO jdbc_items VALUES (500, 'twice')")));
      show("aborted", code(() -> query(c, "SELECT 1")));
      c.rollback(sp);
      c.commit();
      c.setReadOnly(true);
      show("read only", code(() -> execute(c, "INSERT INTO jdbc_items VALUES (501)")));
      c.rollback();
      c.setReadOnly(false);
      c.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
      show("isolation", query(c, "SHOW transaction_isolation"));
      c.commit();
      c.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);

      // Cursors: rows come in portions.
      try (PreparedStatement s = c.prepareStatement("SELECT i FROM generate_series(1, 1000) i")) {
        s.setFetchSize(37);
        long sum = 0;
        try (ResultSet r = s.executeQuery()) {
          while (r.next()) sum += r.getInt(1);
        }
        show("fetch size", sum);
      }
      c.commit();
      c.setAutoCommit(true);
      show("kept", query(c, "SELECT id FROM jdbc_items WHERE id >= 500"));
      show("syntax", code(() -> execute(c, "SELEC")));

      // COPY.
      CopyManager copy = c.unwrap(PGConnection.class).getCopyAPI();
      var text = new StringBuilder();
      for (int i = 1000; i < 2000; i++) text.append(i).append("\tcopied ").append(i).append('\n');
      show("copy in", copy.copyIn("COPY jdbc_items FROM STDIN", new StringReader(text.toString())));
      var out = new StringWriter();
      copy.copyOut("COPY (SELECT * FROM jdbc_items WHERE id > 1997 ORDER BY id) TO STDOUT", out);
      show("copy out", out.toString().replace("\n", "|"));
      show("copy error", code(() -> copy.copyIn("COPY jdbc_items FROM STDIN", new StringReader("1000\ttwice\n"))));

      // Cancel and timeouts.
      try (Statement s = c.createStatement()) {
        s.setQueryTimeout(1);
        show("query timeout", code(() -> s.execute("SELECT pg_sleep(30)")));
      }
      try (Statement s = c.createStatement()) {
        var t = new Thread(() -> {
          try {
            Thread.sleep(300);
            s.cancel();
          } catch (Exception e) {
            show("cancel failed", e);
          }
        });
        t.start();
        show("cancel", code(() -> s.execute("SELECT pg_sleep(30)")));
        t.join();
      }
      execute(c, "SET statement_timeout = '200ms'");
      show("statement_timeout", code(() -> execute(c, "SELECT pg_sleep(30)")));
      execute(c, "RESET statement_timeout");

      // Settings.
      c.setSchema("pg_catalog");
      show("schema", c.getSchema());
      c.setSchema("public");
      c.setClientInfo("ApplicationName", "jdbc program");
      show("application_name", query(c, "SHOW application_name"));
      query(c, "SELECT set_config('app.who', ?, false)", "somebody");
      show("setting", query(c, "SHOW app.who"));
      c.setAutoCommit(false);
      execute(c, "SET app.who = 'another'");
      c.rollback();
      show("rolled back", query(c, "SHOW app.who"));
      c.commit();
      c.setAutoCommit(true);

      // LISTEN, in and outside of a transaction.
      execute(c, "LISTEN jdbc_news");
      try (Connection d = connect("")) {
        execute(d, "NOTIFY jdbc_news, 'one'");
        d.setAutoCommit(false);
        query(d, "SELECT pg_notify('jdbc_news', 'two')");
        d.commit();
      }
      c.setAutoCommit(false);
      execute(c, "LISTEN jdbc_more");
      c.commit();
      c.setAutoCommit(true);
      execute(c, "NOTIFY jdbc_more, 'three'");
      var heard = new TreeSet<String>();
      for (int i = 0; i < 20 && heard.size() < 3; i++) {
        PGNotification[] n = c.unwrap(PGConnection.class).getNotifications(500);
        if (n != null) for (PGNotification x : n) heard.add(x.getName() + " " + x.getParameter());
      }
      show("listen", heard);
      execute(c, "UNLISTEN *");

      // Advisory locks and temporary tables.
      show("lock", query(c, "SELECT pg_try_advisory_lock(4247)"));
      try (Connection rival = connect("")) {
        show("rival", query(rival, "SELECT pg_try_advisory_lock(4247)"));
      }
      show("unlock", query(c, "SELECT pg_advisory_unlock(4247)"));
      execute(c, "CREATE TEMP TABLE jdbc_temp AS SELECT i FROM generate_series(1, 10) i");
      show("temporary", query(c, "SELECT sum(i) FROM jdbc_temp"));
      execute(c, "DROP TABLE jdbc_temp");
      try (ResultSet r = c.getMetaData().getColumns(null, "public", "jdbc_items", "%")) {
        var names = new ArrayList<String>();
        while (r.next()) names.add(r.getString("COLUMN_NAME") + " " + r.getString("TYPE_NAME"));
        show("metadata", names);
      }
      execute(c, "DROP TABLE jdbc_items");
    }
  }

  static void pool() throws Exception {
    var config = new HikariConfig();
    config.setJdbcUrl(url(""));
    config.setUsername(System.getenv("PGUSER"));
    config.setPassword(System.getenv("PGPASSWORD"));
    config.setMaximumPoolSize(5);
    config.setConnectionInitSql("SET app.tenant = 'everybody'");
    try (var data = new HikariDataSource(config); Connection c = connect("")) {
      try (Connection d = data.getConnection()) {
        show("init", query(d, "SHOW app.tenant"));
      }
      execute(c, "DROP TABLE IF EXISTS jdbc_load; CREATE TABLE jdbc_load (id int PRIMARY KEY, n int); "
          + "INSERT INTO jdbc_load SELECT i, 0 FROM generate_series(0, 7) i");
      Set<String> errors = Collections.synchronizedSet(new TreeSet<>());
      ExecutorService threads = Executors.newFixedThreadPool(8);
      for (int t = 0; t < 8; t++) {
        final int id = t;
        threads.execute(() -> {
          for (int n = 0; n < 40; n++) {
            try (Connection d = data.getConnection()) {
              d.setAutoCommit(false);
              query(d, "SELECT id, n FROM jdbc_load WHERE id = ?", id);
              try (PreparedStatement s = d.prepareStatement("UPDATE jdbc_load SET n = n + 1 WHERE id = ?")) {
                s.setInt(1, id);
                s.executeUpdate();
              }
              d.commit();
            } catch (SQLException e) {
              errors.add(e.getMessage());
            }
          }
        });
      }
      for (int i = 0; i < 5; i++) execute(c, "ALTER TABLE jdbc_load ADD COLUMN c" + i + " int DEFAULT " + i);
      threads.shutdown();
      threads.awaitTermination(2, TimeUnit.MINUTES);
      show("migration", errors);
      show("after it", query(c, "SELECT * FROM jdbc_load ORDER BY id"));
      execute(c, "DROP TABLE jdbc_load");
    }
  }
}
