package router

import (
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/proto"
)

// cursorHold is the bit of DeclareCursorStmt.options for WITH HOLD.
const cursorHold = 0x20

// statefulEffects are what a prepared statement may do each time it is
// executed; EXECUTE does not say which statement it runs, so PREPARE has them.
const statefulEffects = EffectSet | EffectAdvisoryLock | EffectTemp | EffectOther

// planOf judges one parsed statement.
func planOf(stmt *pg.Node) *Plan {
	switch n := stmt.GetNode().(type) {
	case *pg.Node_SelectStmt:
		p := look(n.SelectStmt).plan("SELECT")
		p.Clock = tellsTime(n.SelectStmt)
		return p
	case *pg.Node_InsertStmt:
		return planLooked(n.InsertStmt, "INSERT")
	case *pg.Node_UpdateStmt:
		return planLooked(n.UpdateStmt, "UPDATE")
	case *pg.Node_DeleteStmt:
		return planLooked(n.DeleteStmt, "DELETE")
	case *pg.Node_MergeStmt:
		return planLooked(n.MergeStmt, "MERGE")
	case *pg.Node_ExplainStmt:
		return planExplain(n.ExplainStmt)
	case *pg.Node_TransactionStmt:
		return planTransaction(n.TransactionStmt)
	case *pg.Node_VariableSetStmt:
		return planSet(n.VariableSetStmt)
	case *pg.Node_VariableShowStmt:
		return planShow(n.VariableShowStmt)
	case *pg.Node_PrepareStmt:
		inner := planOf(n.PrepareStmt.GetQuery())
		p := primary("session: PREPARE", "PREPARE", EffectPrepare|inner.Effects&statefulEffects)
		p.Use, p.Statement, p.Inner = PreparedMake, n.PrepareStmt.GetName(), inner
		p.Settings, p.SettingsHidden = inner.Settings, inner.SettingsHidden || len(inner.SettingParams) > 0
		return p
	case *pg.Node_ExecuteStmt:
		return planExecute(n.ExecuteStmt)
	case *pg.Node_DeallocateStmt:
		if n.DeallocateStmt.GetIsall() || n.DeallocateStmt.GetName() == "" {
			return primary("session: DEALLOCATE ALL", "DEALLOCATE ALL", EffectDeallocateAll)
		}
		p := primary("session: DEALLOCATE", "DEALLOCATE", EffectDeallocate|EffectGiveBack)
		p.Use, p.Statement = PreparedDrop, n.DeallocateStmt.GetName()
		return p
	case *pg.Node_DeclareCursorStmt:
		f := look(n.DeclareCursorStmt.GetQuery())
		if n.DeclareCursorStmt.GetOptions()&cursorHold != 0 {
			return f.onto(primary("cursor: DECLARE WITH HOLD", "DECLARE CURSOR", EffectHoldCursor|f.effects))
		}
		return f.onto(primary("cursor: DECLARE", "DECLARE CURSOR", f.effects))
	case *pg.Node_CopyStmt:
		return planCopy(n.CopyStmt)
	case *pg.Node_CreateTableAsStmt:
		return planCreateAs(n.CreateTableAsStmt)
	case *pg.Node_DiscardStmt:
		return planDiscard(n.DiscardStmt)
	case *pg.Node_ListenStmt:
		return planListen("LISTEN", Listen{Channel: n.ListenStmt.GetConditionname()})
	case *pg.Node_UnlistenStmt:
		return planListen("UNLISTEN", Listen{Channel: n.UnlistenStmt.GetConditionname(), Stop: true})
	}
	return planUtility(stmt)
}

func primary(why Reason, tag string, effects Effect) *Plan {
	return &Plan{Reason: why, Tag: tag, Effects: effects}
}

// plan is the plan by the text alone, with what a catalog must decide.
func (f findings) plan(tag string) *Plan {
	p := &Plan{Class: ClassRead, Reason: reasonRead, Tag: tag, Effects: f.effects, Undoable: !f.lasting}
	if f.reason != "" {
		p.Class, p.Reason = ClassPrimary, f.reason
	}
	if f.hard != "" {
		f.refs = refs{functions: f.refs.functions} // for what they do to the session
	}
	if !f.refs.empty() {
		p.open = &open{hard: f.hard, sure: f.sure, refs: f.refs}
	}
	return f.onto(p)
}

// onto notes on a plan which settings were found to be changed.
func (f findings) onto(p *Plan) *Plan {
	p.Settings, p.SettingParams, p.SettingsHidden = f.settings, f.params, f.hidden
	return p
}

// planLooked is for statements that judge refuses by themselves.
func planLooked(m proto.Message, tag string) *Plan { return look(m).plan(tag) }

// planExecute: what EXECUTE runs is known to the session alone.
func planExecute(n *pg.ExecuteStmt) *Plan {
	var f findings
	for _, arg := range n.GetParams() {
		f.walk(arg.ProtoReflect())
	}
	args := f.plan("")
	p := primary("session: EXECUTE", "", EffectWrite|f.effects)
	p.Use, p.Statement, p.Inner = PreparedRun, n.GetName(), args
	return p
}

// reads marks the plan of a statement that has an EXECUTE inside.
func (p *Plan) reads(query *pg.Node) *Plan {
	if e := query.GetExecuteStmt(); e != nil {
		p.Use, p.Statement = PreparedRead, e.GetName()
	}
	return p
}

// planExplain: what is only planned does nothing, what is analysed runs. The
// value of ANALYZE is not looked at, since it may be a literal.
func planExplain(n *pg.ExplainStmt) *Plan {
	inner := planOf(n.GetQuery())
	for _, o := range n.GetOptions() {
		if o.GetDefElem().GetDefname() == "analyze" {
			p := primary("explain: ANALYZE runs the statement", "EXPLAIN", inner.Effects).reads(n.GetQuery())
			p.Settings, p.SettingParams, p.SettingsHidden = inner.Settings, inner.SettingParams, inner.SettingsHidden
			return p
		}
	}
	p := primary("explain: "+inner.Reason, "EXPLAIN", 0)
	if n.GetQuery().GetSelectStmt() == nil {
		return p.reads(n.GetQuery())
	}
	if inner.Class == ClassRead {
		p.Class, p.Reason = ClassRead, reasonRead
	}
	if o := inner.open; o != nil && o.hard == "" {
		p.open = &open{refs: o.refs, prefix: "explain: ", planned: true}
	}
	return p
}

// planTransaction: only a block that is READ ONLY from its first word may run
// on a standby, and not a serializable one, which a standby refuses.
func planTransaction(n *pg.TransactionStmt) *Plan {
	chain := Effect(0)
	if n.GetChain() {
		chain = EffectBegin
	}
	switch n.GetKind() {
	case pg.TransactionStmtKind_TRANS_STMT_BEGIN, pg.TransactionStmtKind_TRANS_STMT_START:
		tag := "BEGIN"
		if n.GetKind() == pg.TransactionStmtKind_TRANS_STMT_START {
			tag = "START TRANSACTION"
		}
		block := &Block{}
		for _, v := range transactionVars(n.GetOptions(), "") {
			switch v.Name {
			case "transaction_read_only":
				block.Access = AccessReadWrite
				if v.Value == "on" {
					block.Access = AccessReadOnly
				}
			case "transaction_isolation":
				block.Isolation = v.Value
			}
		}
		p := primary("transaction: "+Reason(tag), tag, EffectBegin)
		p.Block = block
		if block.Access == AccessReadOnly {
			p.Effects |= EffectBeginReadOnly
			if block.Isolation == "serializable" {
				p.Reason += " SERIALIZABLE"
			} else {
				p.Class, p.Reason = ClassRead, reasonReadBegin
			}
		}
		return p
	case pg.TransactionStmtKind_TRANS_STMT_COMMIT:
		return primary("transaction: COMMIT", "COMMIT", EffectEnd|chain)
	case pg.TransactionStmtKind_TRANS_STMT_ROLLBACK:
		return primary("transaction: ROLLBACK", "ROLLBACK", EffectEnd|chain)
	case pg.TransactionStmtKind_TRANS_STMT_SAVEPOINT:
		return primary("transaction: SAVEPOINT", "SAVEPOINT", 0)
	case pg.TransactionStmtKind_TRANS_STMT_RELEASE:
		return primary("transaction: RELEASE", "RELEASE", 0)
	case pg.TransactionStmtKind_TRANS_STMT_ROLLBACK_TO:
		return primary("transaction: ROLLBACK TO SAVEPOINT", "ROLLBACK", 0)
	case pg.TransactionStmtKind_TRANS_STMT_PREPARE:
		return primary("transaction: PREPARE TRANSACTION", "PREPARE TRANSACTION", EffectEnd)
	case pg.TransactionStmtKind_TRANS_STMT_COMMIT_PREPARED:
		return primary("transaction: COMMIT PREPARED", "COMMIT PREPARED", EffectWrite)
	case pg.TransactionStmtKind_TRANS_STMT_ROLLBACK_PREPARED:
		return primary("transaction: ROLLBACK PREPARED", "ROLLBACK PREPARED", EffectWrite)
	}
	return primary("transaction: not known", "", EffectWrite|EffectOther)
}

// planCopy: COPY stays on the primary in every direction; out of a query it
// does what the query does.
func planCopy(n *pg.CopyStmt) *Plan {
	if n.GetIsFrom() {
		return primary("write: COPY FROM", "COPY", EffectCopy|EffectWrite)
	}
	f := findings{}
	if q := n.GetQuery(); q != nil {
		f = look(q)
	}
	return f.onto(primary("copy: COPY TO", "COPY", EffectCopy|f.effects))
}

func planCreateAs(n *pg.CreateTableAsStmt) *Plan {
	// EXECUTE as the source is no SELECT, and judged as not known: a write.
	f := look(n.GetQuery())
	tag := "SELECT"
	what := Reason("CREATE TABLE AS")
	if n.GetObjtype() == pg.ObjectType_OBJECT_MATVIEW {
		what = "CREATE MATERIALIZED VIEW"
	}
	if n.GetInto().GetSkipData() {
		tag = string(what)
	}
	return f.onto(primary("ddl: "+what, tag, f.effects|EffectWrite|EffectDDL|tempEffect(n.GetInto())).reads(n.GetQuery()))
}

func planDiscard(n *pg.DiscardStmt) *Plan {
	switch n.GetTarget() {
	case pg.DiscardMode_DISCARD_PLANS:
		return primary("session: DISCARD PLANS", "DISCARD PLANS", 0)
	case pg.DiscardMode_DISCARD_SEQUENCES:
		return primary("session: DISCARD SEQUENCES", "DISCARD SEQUENCES", 0)
	case pg.DiscardMode_DISCARD_TEMP:
		return primary("session: DISCARD TEMP", "DISCARD TEMP", EffectGiveBack)
	}
	return primary("session: DISCARD ALL", "DISCARD ALL", EffectDiscardAll)
}

func planListen(tag string, l Listen) *Plan {
	p := primary("session: "+Reason(tag), tag, EffectListen)
	p.Listens = []Listen{l}
	if l.Stop {
		p.Effects |= EffectGiveBack
	}
	return p
}

// utility is a kind of statement that needs no look inside.
type utility struct {
	tag     string
	why     Reason // "" = "ddl: " and the tag
	effects Effect
}

// utilities by the name of the parser's node. A tag that ends in a space goes
// on with the kind of object.
var utilities = map[string]utility{
	"NotifyStmt":         {"NOTIFY", "write: NOTIFY", EffectWrite},
	"LockStmt":           {"LOCK TABLE", "lock: LOCK TABLE", 0},
	"LoadStmt":           {"LOAD", "session: LOAD", EffectOther},
	"DoStmt":             {"DO", "unknown code: DO", EffectWrite | EffectDDL | EffectOther},
	"CallStmt":           {"CALL", "unknown code: CALL", EffectWrite | EffectOther},
	"FetchStmt":          {"FETCH", "cursor: FETCH", 0},
	"ClosePortalStmt":    {"CLOSE CURSOR", "cursor: CLOSE", EffectGiveBack},
	"ConstraintsSetStmt": {"SET CONSTRAINTS", "transaction: SET CONSTRAINTS", 0},
	"CheckPointStmt":     {"CHECKPOINT", "maintenance: CHECKPOINT", 0},
	"TruncateStmt":       {"TRUNCATE TABLE", "write: TRUNCATE", EffectWrite},
	"VacuumStmt":         {"VACUUM", "maintenance: VACUUM", EffectWrite},
	"ClusterStmt":        {"CLUSTER", "maintenance: CLUSTER", EffectWrite},
	"ReindexStmt":        {"REINDEX", "maintenance: REINDEX", EffectWrite},
	"RefreshMatViewStmt": {"REFRESH MATERIALIZED VIEW", "write: REFRESH MATERIALIZED VIEW", EffectWrite},

	"AlterCollationStmt":           {tag: "ALTER COLLATION"},
	"AlterDatabaseRefreshCollStmt": {tag: "ALTER DATABASE"},
	"AlterDatabaseSetStmt":         {tag: "ALTER DATABASE"},
	"AlterDatabaseStmt":            {tag: "ALTER DATABASE"},
	"AlterDefaultPrivilegesStmt":   {tag: "ALTER DEFAULT PRIVILEGES"},
	"AlterDomainStmt":              {tag: "ALTER DOMAIN"},
	"AlterEnumStmt":                {tag: "ALTER TYPE"},
	"AlterEventTrigStmt":           {tag: "ALTER EVENT TRIGGER"},
	"AlterExtensionContentsStmt":   {tag: "ALTER EXTENSION"},
	"AlterExtensionStmt":           {tag: "ALTER EXTENSION"},
	"AlterFdwStmt":                 {tag: "ALTER FOREIGN DATA WRAPPER"},
	"AlterForeignServerStmt":       {tag: "ALTER SERVER"},
	"AlterFunctionStmt":            {tag: "ALTER "},
	"AlterObjectDependsStmt":       {tag: "ALTER "},
	"AlterObjectSchemaStmt":        {tag: "ALTER "},
	"AlterOpFamilyStmt":            {tag: "ALTER OPERATOR FAMILY"},
	"AlterOperatorStmt":            {tag: "ALTER OPERATOR"},
	"AlterOwnerStmt":               {tag: "ALTER "},
	"AlterPolicyStmt":              {tag: "ALTER POLICY"},
	"AlterPublicationStmt":         {tag: "ALTER PUBLICATION"},
	"AlterRoleSetStmt":             {tag: "ALTER ROLE"},
	"AlterRoleStmt":                {tag: "ALTER ROLE"},
	"AlterSeqStmt":                 {tag: "ALTER SEQUENCE"},
	"AlterStatsStmt":               {tag: "ALTER STATISTICS"},
	"AlterSubscriptionStmt":        {tag: "ALTER SUBSCRIPTION"},
	"AlterSystemStmt":              {tag: "ALTER SYSTEM"},
	"AlterTSConfigurationStmt":     {tag: "ALTER TEXT SEARCH CONFIGURATION"},
	"AlterTSDictionaryStmt":        {tag: "ALTER TEXT SEARCH DICTIONARY"},
	"AlterTableMoveAllStmt":        {tag: "ALTER "},
	"AlterTableSpaceOptionsStmt":   {tag: "ALTER TABLESPACE"},
	"AlterTableStmt":               {tag: "ALTER "},
	"AlterTypeStmt":                {tag: "ALTER TYPE"},
	"AlterUserMappingStmt":         {tag: "ALTER USER MAPPING"},
	"CommentStmt":                  {tag: "COMMENT"},
	"CompositeTypeStmt":            {tag: "CREATE TYPE"},
	"CreateAmStmt":                 {tag: "CREATE ACCESS METHOD"},
	"CreateCastStmt":               {tag: "CREATE CAST"},
	"CreateConversionStmt":         {tag: "CREATE CONVERSION"},
	"CreateDomainStmt":             {tag: "CREATE DOMAIN"},
	"CreateEnumStmt":               {tag: "CREATE TYPE"},
	"CreateEventTrigStmt":          {tag: "CREATE EVENT TRIGGER"},
	"CreateExtensionStmt":          {tag: "CREATE EXTENSION"},
	"CreateFdwStmt":                {tag: "CREATE FOREIGN DATA WRAPPER"},
	"CreateForeignServerStmt":      {tag: "CREATE SERVER"},
	"CreateForeignTableStmt":       {tag: "CREATE FOREIGN TABLE"},
	"CreateFunctionStmt":           {tag: "CREATE FUNCTION"},
	"CreateOpClassStmt":            {tag: "CREATE OPERATOR CLASS"},
	"CreateOpFamilyStmt":           {tag: "CREATE OPERATOR FAMILY"},
	"CreatePLangStmt":              {tag: "CREATE LANGUAGE"},
	"CreatePolicyStmt":             {tag: "CREATE POLICY"},
	"CreatePublicationStmt":        {tag: "CREATE PUBLICATION"},
	"CreateRangeStmt":              {tag: "CREATE TYPE"},
	"CreateRoleStmt":               {tag: "CREATE ROLE"},
	"CreateSchemaStmt":             {tag: "CREATE SCHEMA"},
	"CreateSeqStmt":                {tag: "CREATE SEQUENCE"},
	"CreateStatsStmt":              {tag: "CREATE STATISTICS"},
	"CreateStmt":                   {tag: "CREATE TABLE"},
	"CreateSubscriptionStmt":       {tag: "CREATE SUBSCRIPTION"},
	"CreateTableSpaceStmt":         {tag: "CREATE TABLESPACE"},
	"CreateTransformStmt":          {tag: "CREATE TRANSFORM"},
	"CreateTrigStmt":               {tag: "CREATE TRIGGER"},
	"CreateUserMappingStmt":        {tag: "CREATE USER MAPPING"},
	"CreatedbStmt":                 {tag: "CREATE DATABASE"},
	"DefineStmt":                   {tag: "CREATE "},
	"DropOwnedStmt":                {tag: "DROP OWNED"},
	"DropRoleStmt":                 {tag: "DROP ROLE"},
	"DropStmt":                     {tag: "DROP "},
	"DropSubscriptionStmt":         {tag: "DROP SUBSCRIPTION"},
	"DropTableSpaceStmt":           {tag: "DROP TABLESPACE"},
	"DropUserMappingStmt":          {tag: "DROP USER MAPPING"},
	"DropdbStmt":                   {tag: "DROP DATABASE"},
	"GrantRoleStmt":                {tag: "GRANT ROLE"},
	"GrantStmt":                    {tag: "GRANT"},
	"ImportForeignSchemaStmt":      {tag: "IMPORT FOREIGN SCHEMA"},
	"IndexStmt":                    {tag: "CREATE INDEX"},
	"ReassignOwnedStmt":            {tag: "REASSIGN OWNED"},
	"RenameStmt":                   {tag: "ALTER "},
	"RuleStmt":                     {tag: "CREATE RULE"},
	"SecLabelStmt":                 {tag: "SECURITY LABEL"},
	"ViewStmt":                     {tag: "CREATE VIEW"},
}

// planUtility is for everything that is not looked into.
func planUtility(stmt *pg.Node) *Plan {
	r := stmt.ProtoReflect()
	field := r.WhichOneof(r.Descriptor().Oneofs().ByName("node"))
	if field == nil {
		return primary(reasonBroken, "", EffectWrite|EffectOther)
	}
	name := string(field.Message().Name())
	u, ok := utilities[name]
	if !ok {
		return primary("statement not known: "+Reason(name), "", EffectWrite|EffectDDL|EffectOther)
	}
	u.tag = utilityTag(stmt, u.tag)
	if u.why == "" {
		u.why = "ddl: " + Reason(u.tag)
		u.effects = EffectDDL | EffectWrite | tempEffect(r.Get(field).Message().Interface())
		if name == "DropStmt" || name == "DropOwnedStmt" {
			u.effects |= EffectGiveBack
		}
	}
	return primary(u.why, u.tag, u.effects)
}

// utilityTag completes or corrects a tag by what stands in the statement.
func utilityTag(stmt *pg.Node, tag string) string {
	switch n := stmt.GetNode().(type) {
	case *pg.Node_FetchStmt:
		if n.FetchStmt.GetIsmove() {
			return "MOVE"
		}
	case *pg.Node_ClosePortalStmt:
		if n.ClosePortalStmt.GetPortalname() == "" {
			return "CLOSE CURSOR ALL"
		}
	case *pg.Node_VacuumStmt:
		if !n.VacuumStmt.GetIsVacuumcmd() {
			return "ANALYZE"
		}
	case *pg.Node_GrantStmt:
		if !n.GrantStmt.GetIsGrant() {
			return "REVOKE"
		}
	case *pg.Node_GrantRoleStmt:
		if !n.GrantRoleStmt.GetIsGrant() {
			return "REVOKE ROLE"
		}
	case *pg.Node_CreateFunctionStmt:
		if n.CreateFunctionStmt.GetIsProcedure() {
			return "CREATE PROCEDURE"
		}
	case *pg.Node_AlterFunctionStmt:
		return tag + objectName(n.AlterFunctionStmt.GetObjtype())
	case *pg.Node_AlterObjectDependsStmt:
		return tag + objectName(n.AlterObjectDependsStmt.GetObjectType())
	case *pg.Node_AlterObjectSchemaStmt:
		return tag + objectName(n.AlterObjectSchemaStmt.GetObjectType())
	case *pg.Node_AlterOwnerStmt:
		return tag + objectName(n.AlterOwnerStmt.GetObjectType())
	case *pg.Node_AlterTableStmt:
		return tag + objectName(n.AlterTableStmt.GetObjtype())
	case *pg.Node_AlterTableMoveAllStmt:
		return tag + objectName(n.AlterTableMoveAllStmt.GetObjtype())
	case *pg.Node_DefineStmt:
		return tag + objectName(n.DefineStmt.GetKind())
	case *pg.Node_DropStmt:
		return tag + objectName(n.DropStmt.GetRemoveType())
	case *pg.Node_RenameStmt:
		switch n.RenameStmt.GetRenameType() {
		case pg.ObjectType_OBJECT_COLUMN, pg.ObjectType_OBJECT_ATTRIBUTE:
			return tag + objectName(n.RenameStmt.GetRelationType())
		}
		return tag + objectName(n.RenameStmt.GetRenameType())
	}
	return tag
}

// objectNames are the kinds whose word in a tag is not that of the parser.
var objectNames = map[string]string{
	"ATTRIBUTE": "TYPE", "DOMCONSTRAINT": "DOMAIN", "FDW": "FOREIGN DATA WRAPPER", "FOREIGN SERVER": "SERVER",
	"LARGEOBJECT": "LARGE OBJECT", "MATVIEW": "MATERIALIZED VIEW", "OPCLASS": "OPERATOR CLASS",
	"OPFAMILY": "OPERATOR FAMILY", "STATISTIC EXT": "STATISTICS", "TABCONSTRAINT": "TABLE",
	"TSCONFIGURATION": "TEXT SEARCH CONFIGURATION", "TSDICTIONARY": "TEXT SEARCH DICTIONARY",
	"TSPARSER": "TEXT SEARCH PARSER", "TSTEMPLATE": "TEXT SEARCH TEMPLATE",
}

func objectName(t pg.ObjectType) string {
	name := strings.ReplaceAll(strings.TrimPrefix(t.String(), "OBJECT_"), "_", " ")
	if other, ok := objectNames[name]; ok {
		return other
	}
	return name
}
