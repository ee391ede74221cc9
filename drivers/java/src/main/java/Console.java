import java.sql.DriverManager;
import java.sql.SQLException;
import java.util.Properties;
import java.util.TreeSet;
import java.util.logging.Level;
import java.util.logging.Logger;

/** pgjdbc on the console, in each of its query modes. */
public class Console {
  // The driver warns of the version, which is PgBouncer's.
  static final Logger LOG = Logger.getLogger("org.postgresql");

  public static void main(String[] args) throws Exception {
    LOG.setLevel(Level.OFF);
    var e = System.getenv();
    var url = "jdbc:postgresql://" + e.get("PGHOST") + ":" + e.get("PGPORT") + "/" + e.get("PGDATABASE") + "?sslmode=disable&preferQueryMode=";
    var p = new Properties();
    p.setProperty("user", e.get("PGUSER"));
    p.setProperty("password", e.get("PGPASSWORD"));
    for (var mode : new String[] {"simple", "extended", "extendedForPrepared", "extendedCacheEverything"}) {
      try (var c = DriverManager.getConnection(url + mode, p); var s = c.createStatement()) {
        try (var r = s.executeQuery("SHOW VERSION")) {
          r.next();
          System.out.println("version " + r.getString(1).startsWith("PgBouncer 1.25"));
        }
        var names = new TreeSet<String>();
        try (var r = s.executeQuery("SHOW DATABASES")) {
          while (r.next()) {
            names.add(r.getString("name"));
          }
        }
        System.out.println("databases " + String.join(" ", names));
        try (var r = s.executeQuery("SHOW NONSENSE")) {
          System.out.println("not refused");
        } catch (SQLException x) {
          System.out.println("refused " + x.getSQLState());
        }
      }
    }
  }
}
