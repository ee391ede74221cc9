package monitor

// The questions of a reading of the catalog, all of one transaction. Every role
// may ask them: they read only what PUBLIC may read. Names are qualified, so that
// no search_path matters. The numbers behind "oid" are router.FirstUser.
const (
	// Statements of the transaction. The limits are the server's own, so that a
	// reading does not go on there after it was given up here.
	beginReading = `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`
	boundReading = `SET LOCAL statement_timeout = '60s'; SET LOCAL lock_timeout = '5s'; SET LOCAL search_path = pg_catalog`
	endReading   = `COMMIT`

	// Whether this is the primary, and the search_path with its source, which must
	// be asked before boundReading.
	askSession = `SELECT pg_catalog.pg_is_in_recovery(), s.setting, s.source
FROM pg_catalog.pg_settings s WHERE s.name = 'search_path'`

	askBuiltins = `SELECT p.oid, n.nspname, p.proname, p.prokind, p.provolatile
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE p.oid < 16384`

	askFunctions = `SELECT p.oid, n.nspname, p.proname, p.prokind, p.provolatile,
 p.pronargs - p.pronargdefaults - (p.provariadic <> 0)::int, CASE WHEN p.provariadic <> 0 THEN -1 ELSE p.pronargs END,
 coalesce(t.typtype IN ('c', 'd', 'p'), false), e.objid IS NOT NULL, p.proargtypes,
 CASE WHEN p.provolatile = 'v' AND p.prokind IN ('f', 'w') AND e.objid IS NULL
  THEN pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(p.proname) || '(' || pg_catalog.pg_get_function_identity_arguments(p.oid) || ')' END,
 l.lanname IN ('sql', 'plpgsql'), p.xmin, p.ctid
FROM pg_catalog.pg_proc p
 JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
 JOIN pg_catalog.pg_language l ON l.oid = p.prolang
 LEFT JOIN pg_catalog.pg_type t ON t.oid = p.proargtypes[0]
 LEFT JOIN pg_catalog.pg_depend e ON e.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND e.objid = p.oid AND e.deptype = 'e'
WHERE p.oid >= 16384 AND n.nspname !~ '^pg_temp_'`

	// The bodies of functions, by OID. A body that is parsed is a tree; there is
	// none before PostgreSQL 14.
	askBodies    = `SELECT p.oid, CASE WHEN octet_length(p.prosrc) <= 262144 THEN p.prosrc END, p.prosqlbody FROM pg_catalog.pg_proc p WHERE p.oid = ANY `
	askOldBodies = `SELECT p.oid, CASE WHEN octet_length(p.prosrc) <= 262144 THEN p.prosrc END, NULL FROM pg_catalog.pg_proc p WHERE p.oid = ANY `

	askAggregates = `SELECT a.aggfnoid::oid, a.aggtransfn::oid, a.aggfinalfn::oid, a.aggcombinefn::oid, a.aggserialfn::oid,
 a.aggdeserialfn::oid, a.aggmtransfn::oid, a.aggminvtransfn::oid, a.aggmfinalfn::oid
FROM pg_catalog.pg_aggregate a WHERE a.aggfnoid::oid >= 16384`

	askOperators = `SELECT o.oid, n.nspname, o.oprname, o.oprcode::oid
FROM pg_catalog.pg_operator o JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace WHERE o.oid >= 16384`

	askCasts = `SELECT n.nspname, t.typname, c.castfunc, c.castcontext = 'i'
FROM pg_catalog.pg_cast c JOIN pg_catalog.pg_type t ON t.oid = c.casttarget JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
WHERE c.castfunc >= 16384`

	// Of composite types only those that are no table's row.
	askTypes = `SELECT t.oid, n.nspname, t.typname, t.typtype, t.typbasetype
FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
 LEFT JOIN pg_catalog.pg_class c ON c.oid = t.typrelid
WHERE t.oid >= 16384 AND t.typtype <> 'p' AND t.typcategory <> 'A' AND (t.typtype <> 'c' OR c.relkind = 'c') AND n.nspname !~ '^pg_temp_'`

	askRelations = `SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence, c.relrowsecurity, c.reltype
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relpersistence <> 't' AND n.nspname <> 'pg_toast'`

	askChildren = `SELECT i.inhparent, i.inhrelid
FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't'`

	// Stored expressions: owner, OID and version, and then the text by OID. One that
	// is longer than 4 MiB is not read.
	askRules     = `SELECT r.ev_class, r.oid, r.xmin, r.ctid FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class WHERE r.ev_type = '1' AND c.relkind = 'v'`
	askRuleTexts = `SELECT r.oid, CASE WHEN octet_length(r.ev_action::text) <= 4194304 THEN r.ev_action END FROM pg_catalog.pg_rewrite r WHERE r.oid = ANY `

	askPolicies    = `SELECT p.polrelid, p.oid, p.xmin, p.ctid FROM pg_catalog.pg_policy p WHERE p.polcmd IN ('r', '*') AND p.polqual IS NOT NULL`
	askPolicyTexts = `SELECT p.oid, CASE WHEN octet_length(p.polqual::text) <= 4194304 THEN p.polqual END FROM pg_catalog.pg_policy p WHERE p.oid = ANY `

	askChecks     = `SELECT c.contypid, c.oid, c.xmin, c.ctid FROM pg_catalog.pg_constraint c WHERE c.contypid >= 16384 AND c.conbin IS NOT NULL`
	askCheckTexts = `SELECT c.oid, CASE WHEN octet_length(c.conbin::text) <= 4194304 THEN c.conbin END FROM pg_catalog.pg_constraint c WHERE c.oid = ANY `

	// Functions that compare values behind no name that a statement has. Those in C
	// are an extension's and do not write.
	askComparing = `SELECT f.oid FROM pg_catalog.pg_proc f JOIN pg_catalog.pg_language l ON l.oid = f.prolang
WHERE f.oid >= 16384 AND l.lanname NOT IN ('c', 'internal') AND f.oid IN (
 SELECT p.amproc::oid FROM pg_catalog.pg_amproc p WHERE p.amproc::oid >= 16384
 UNION SELECT o.oprcode::oid FROM pg_catalog.pg_amop a JOIN pg_catalog.pg_operator o ON o.oid = a.amopopr WHERE o.oprcode::oid >= 16384)`

	// Row types that contain one of some types at any depth, also in arrays and
	// under domains. It is asked only where a domain has a check that is not harmless.
	askRows = `WITH RECURSIVE found(oid) AS (
 SELECT unnest('{%s}'::pg_catalog.oid[])
 UNION SELECT x.oid FROM found f CROSS JOIN LATERAL (
  SELECT t.typarray FROM pg_catalog.pg_type t WHERE t.oid = f.oid AND t.typarray <> 0
  UNION ALL SELECT t.oid FROM pg_catalog.pg_type t WHERE t.typbasetype = f.oid
  UNION ALL SELECT c.reltype FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
   WHERE a.atttypid = f.oid AND a.attnum > 0 AND NOT a.attisdropped AND c.reltype <> 0) x(oid))
SELECT oid FROM found`

	askPaths = `SELECT coalesce(r.rolname, ''), s.setdatabase <> 0, substr(c.c, length('search_path=') + 1)
FROM pg_catalog.pg_db_role_setting s LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole, unnest(s.setconfig) c(c)
WHERE c.c LIKE 'search\_path=%' AND (s.setrole = 0 OR r.oid IS NOT NULL)
 AND (s.setdatabase = 0 OR s.setdatabase = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database()))`
)
