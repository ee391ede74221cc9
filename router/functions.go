package router

import "strings"

func wordSet(words string) map[string]bool {
	set := make(map[string]bool)
	for w := range strings.FieldsSeq(words) {
		set[w] = true
	}
	return set
}

// The lists below are of PostgreSQL's own objects, looked up by the name that
// stands in the statement, unqualified or in pg_catalog. PostgreSQL searches
// pg_catalog before everything else unless search_path names it later, and
// prefers an exact match of argument types in it, so an unqualified name from
// a list means the builtin. Somebody who puts another schema in front, or adds
// an overload for a type of their own, says so with a hint.

// pureFunctions write nothing, lock nothing, keep nothing in the session, and
// answer the same on a standby that has replayed as much. Those in the last
// group answer differently each time, anywhere.
//
// Left out on purpose: names that applications like for functions of their own
// that write or notify (log, broadcast), and those that turn values into the
// types of a table's columns, which may be domains (json_populate_record).
var pureFunctions = wordSet(`
	abs acos acosd acosh asin asind asinh atan atan2 atan2d atand atanh cbrt ceil ceiling cos cosd cosh
	cot cotd degrees div erf erfc exp factorial floor gamma gcd lcm lgamma ln log10 min_scale mod pi
	pow power radians round scale sign sin sind sinh sqrt tan tand tanh trim_scale trunc width_bucket

	ascii bit_count bit_length btrim casefold char_length character_length chr concat concat_ws convert
	convert_from convert_to crc32 crc32c decode encode format get_bit get_byte initcap is_normalized left
	length like like_escape lower lpad ltrim md5 normalize notlike octet_length overlay parse_ident position
	quote_ident quote_literal quote_nullable regexp_count regexp_instr regexp_like regexp_match
	regexp_matches regexp_replace regexp_split_to_array regexp_split_to_table regexp_substr repeat replace
	reverse right rpad rtrim set_bit set_byte sha224 sha256 sha384 sha512 similar_escape similar_to_escape
	split_part starts_with string_to_array string_to_table strpos substr substring to_ascii to_bin to_hex
	to_oct translate unicode_assigned unistr upper

	bool bpchar bytea char date float4 float8 int2 int4 int8 interval jsonb money name numeric oid text
	time timestamp timestamptz timetz varchar varbit xid xid8

	age date_add date_bin date_part date_subtract date_trunc extract isfinite justify_days justify_hours
	justify_interval make_date make_interval make_time make_timestamp make_timestamptz now overlaps
	statement_timestamp timezone to_char to_date to_number to_timestamp transaction_timestamp

	array_append array_cat array_dims array_fill array_length array_lower array_ndims array_position
	array_positions array_prepend array_remove array_replace array_reverse array_sort array_to_json
	array_to_string array_to_tsvector array_upper cardinality generate_series generate_subscripts
	num_nonnulls num_nulls trim_array unnest

	json_array_elements json_array_elements_text json_array_length json_build_array json_build_object
	json_each json_each_text json_extract_path json_extract_path_text json_object json_object_keys
	json_strip_nulls json_to_record json_to_recordset json_typeof jsonb_array_elements
	jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object jsonb_concat
	jsonb_contains jsonb_delete jsonb_delete_path jsonb_each jsonb_each_text jsonb_exists jsonb_exists_all
	jsonb_exists_any jsonb_extract_path jsonb_extract_path_text jsonb_insert jsonb_object jsonb_object_keys
	jsonb_path_exists jsonb_path_exists_tz jsonb_path_match jsonb_path_match_tz jsonb_path_query
	jsonb_path_query_array jsonb_path_query_array_tz jsonb_path_query_first jsonb_path_query_first_tz
	jsonb_path_query_tz jsonb_pretty jsonb_set jsonb_set_lax jsonb_strip_nulls jsonb_to_record
	jsonb_to_recordset jsonb_typeof row_to_json to_json to_jsonb

	any_value array_agg avg bit_and bit_or bit_xor bool_and bool_or corr count covar_pop covar_samp every
	json_agg json_agg_strict json_object_agg json_object_agg_strict json_object_agg_unique
	json_object_agg_unique_strict jsonb_agg jsonb_agg_strict jsonb_object_agg jsonb_object_agg_strict
	jsonb_object_agg_unique jsonb_object_agg_unique_strict max min mode percentile_cont percentile_disc
	range_agg range_intersect_agg regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope
	regr_sxx regr_sxy regr_syy stddev stddev_pop stddev_samp string_agg sum var_pop var_samp variance
	xmlagg

	cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank rank row_number

	daterange datemultirange int4multirange int4range int8multirange int8range isempty lower_inc
	lower_inf multirange nummultirange numrange range_merge tsmultirange tsrange tstzmultirange tstzrange
	upper_inc upper_inf

	area bound_box box center circle diagonal diameter height isclosed ishorizontal isopen isparallel
	isperp isvertical line lseg npoints path point polygon radius slope width

	abbrev cidr family host hostmask inet_merge inet_same_family macaddr macaddr8
	macaddr8_set7bit masklen netmask network set_masklen

	enum_first enum_last enum_range uuid_extract_timestamp uuid_extract_version
	hash_array hash_numeric hashbpchar hashchar hashint2 hashint4 hashint8 hashtext hashtextextended
	hashint4extended hashint8extended satisfies_hash_partition pg_lsn pg_wal_lsn_diff

	json_to_tsvector jsonb_to_tsvector numnode phraseto_tsquery plainto_tsquery querytree setweight strip
	to_tsquery to_tsvector ts_debug ts_delete ts_filter ts_headline ts_lexize ts_parse ts_rank ts_rank_cd
	ts_token_type tsquery_phrase tsvector_to_array websearch_to_tsquery get_current_ts_config

	xml xml_is_well_formed xml_is_well_formed_content xml_is_well_formed_document xmlcomment xmlexists
	xmltext xpath xpath_exists

	acldefault aclexplode col_description current_database current_schema current_schemas current_user
	format_type getdatabaseencoding has_any_column_privilege has_column_privilege has_database_privilege
	has_foreign_data_wrapper_privilege has_function_privilege has_language_privilege
	has_largeobject_privilege has_schema_privilege has_sequence_privilege has_server_privilege
	has_table_privilege has_tablespace_privilege has_type_privilege makeaclitem mxid_age obj_description
	pg_basetype pg_char_to_encoding pg_client_encoding pg_collation_for pg_collation_is_visible
	pg_column_compression pg_column_is_updatable pg_column_size pg_conversion_is_visible
	pg_describe_object pg_encoding_max_length pg_encoding_to_char pg_function_is_visible
	pg_get_constraintdef pg_get_expr pg_get_function_arg_default pg_get_function_arguments
	pg_get_function_identity_arguments pg_get_function_result pg_get_function_sqlbody pg_get_functiondef
	pg_get_indexdef pg_get_keywords pg_get_object_address pg_get_partition_constraintdef
	pg_get_partkeydef pg_get_replica_identity_index pg_get_ruledef pg_get_serial_sequence
	pg_get_statisticsobjdef pg_get_statisticsobjdef_columns pg_get_statisticsobjdef_expressions
	pg_get_triggerdef pg_get_userbyid pg_get_viewdef pg_has_role pg_identify_object
	pg_identify_object_as_address pg_index_column_has_property pg_index_has_property
	pg_indexam_has_property pg_input_error_info pg_input_is_valid pg_is_other_temp_schema pg_opclass_is_visible
	pg_operator_is_visible pg_opfamily_is_visible pg_options_to_table pg_partition_ancestors
	pg_partition_root pg_partition_tree pg_relation_is_updatable pg_sequence_parameters pg_size_bytes
	pg_size_pretty pg_statistics_obj_is_visible pg_table_is_visible pg_ts_config_is_visible
	pg_ts_dict_is_visible pg_ts_parser_is_visible pg_ts_template_is_visible pg_type_is_visible pg_typeof
	regclass row_security_active session_user shobj_description to_regclass to_regcollation
	to_regnamespace to_regoper to_regoperator to_regproc to_regprocedure to_regrole to_regtype
	to_regtypemod

	aclitemout pg_relation_is_publishable pg_settings_get_flags table_to_xmlschema database_to_xmlschema
	anyarray_out anyarray_send anycompatiblearray_out anycompatiblearray_send anycompatiblemultirange_out
	anycompatiblerange_out anyenum_out anymultirange_out anyrange_out anytextcat array_out array_send
	bpcharsend cash_out cash_send date_cmp_timestamptz date_eq_timestamptz date_ge_timestamptz
	date_gt_timestamptz date_le_timestamptz date_lt_timestamptz date_ne_timestamptz date_out enum_out
	enum_send in_range interval_out interval_pl_timestamptz multirange_out multirange_send namesend
	oidvectortypes range_out range_send record_out record_send regclassout regcollationout regconfigout
	regdictionaryout regnamespaceout regoperatorout regoperout regprocedureout regprocout regroleout
	regtypeout textanycat textsend timestamp_cmp_timestamptz timestamp_eq_timestamptz
	timestamp_ge_timestamptz timestamp_gt_timestamptz timestamp_le_timestamptz timestamp_lt_timestamptz
	timestamp_ne_timestamptz timestamp_out timestamptz_cmp_date timestamptz_cmp_timestamp
	timestamptz_eq_date timestamptz_eq_timestamp timestamptz_ge_date timestamptz_ge_timestamp
	timestamptz_gt_date timestamptz_gt_timestamp timestamptz_le_date timestamptz_le_timestamp
	timestamptz_lt_date timestamptz_lt_timestamp timestamptz_mi_interval timestamptz_ne_date
	timestamptz_ne_timestamp timestamptz_out timestamptz_pl_interval timetz_out time_out ts_match_tq
	ts_match_tt unknownsend varcharsend xml_send

	array_sample array_shuffle clock_timestamp gen_random_uuid pg_sleep pg_sleep_for pg_sleep_until random
	random_normal timeofday uuidv4 uuidv7`)

// rowMakers make a row of a type that they are given: as harmless as that.
var rowMakers = wordSet(`json_populate_record json_populate_recordset jsonb_populate_record jsonb_populate_recordset`)

// sequenceEffect is what a call of a functionSession does.
func sequenceEffect(name string) Effect {
	if name == "currval" || name == "lastval" {
		return EffectSequences
	}
	return 0
}

// The other functions that the analysis knows by name, in any schema. A
// function on none of these lists may do anything to the database.
type functionKind uint8

const (
	functionUnknown      functionKind = iota
	functionServer                    // the answer belongs to one server or one connection
	functionSession                   // reads what this session left in its connection
	functionSequence                  // writes a sequence
	functionSetConfig                 // EffectSet, unless it is local
	functionXactLock                  // an advisory lock that ends with the transaction
	functionSessionLock               // one that does not
	functionUnlock                    // gives an advisory lock back
	functionSessionState              // leaves state that cannot be replayed
	functionCancel                    // names a process to be interrupted
	functionTerminate                 // names one to be ended
)

var functionKinds = func() map[string]functionKind {
	kinds := make(map[string]functionKind)
	for kind, words := range map[functionKind]string{
		functionServer: `current_setting inet_client_addr inet_client_port inet_server_addr inet_server_port
			pg_backend_pid pg_blocking_pids pg_conf_load_time pg_control_checkpoint pg_control_init
			pg_control_recovery pg_control_system pg_current_logfile pg_current_wal_flush_lsn
			pg_current_wal_insert_lsn pg_current_wal_lsn pg_database_size pg_get_wal_replay_pause_state
			pg_get_wal_summarizer_state pg_indexes_size pg_is_in_recovery pg_is_wal_replay_paused
			pg_last_committed_xact pg_last_wal_receive_lsn pg_last_wal_replay_lsn
			pg_last_xact_replay_timestamp pg_listening_channels pg_lock_status pg_ls_dir pg_ls_logdir
			pg_ls_tmpdir pg_ls_waldir pg_postmaster_start_time pg_read_binary_file pg_read_file
			pg_relation_filenode pg_relation_filepath pg_relation_size pg_safe_snapshot_blocking_pids
			pg_show_all_settings pg_stat_file pg_table_size pg_tablespace_location pg_tablespace_size
			pg_total_relation_size pg_walfile_name pg_walfile_name_offset version`,
		functionSession: `currval lastval current_query pg_cursor pg_my_temp_schema
			pg_prepared_statement pg_trigger_depth system_user`,
		functionSequence:  `nextval setval`,
		functionSetConfig: `set_config`,
		functionXactLock: `pg_advisory_xact_lock pg_advisory_xact_lock_shared pg_try_advisory_xact_lock
			pg_try_advisory_xact_lock_shared`,
		functionSessionLock: `pg_advisory_lock pg_advisory_lock_shared pg_try_advisory_lock
			pg_try_advisory_lock_shared`,
		functionUnlock: `pg_advisory_unlock pg_advisory_unlock_all pg_advisory_unlock_shared`,
		functionSessionState: `setseed set_limit pg_backup_start pg_backup_stop
			pg_start_backup pg_stop_backup dblink_connect dblink_connect_u dblink_open dblink_send_query
			pg_replication_origin_session_setup pg_replication_origin_session_reset
			pg_create_physical_replication_slot pg_create_logical_replication_slot
			pg_copy_physical_replication_slot pg_copy_logical_replication_slot`,
		functionCancel:    `pg_cancel_backend`,
		functionTerminate: `pg_terminate_backend`,
	} {
		for w := range strings.FieldsSeq(words) {
			kinds[w] = kind
		}
	}
	return kinds
}()

// pureTypes are the types whose input and casts run no function of a user.
// The reg* types only look into the catalog.
var pureTypes = wordSet(`
	aclitem bit bool bpchar box bytea char cid cidr circle date datemultirange daterange float4 float8
	inet int2 int2vector int4 int4multirange int4range int8 int8multirange int8range interval json jsonb
	jsonpath line lseg macaddr macaddr8 money name numeric nummultirange numrange oid oidvector path
	pg_lsn pg_snapshot point polygon record refcursor regclass regcollation regconfig regdictionary
	regnamespace regoper regoperator regproc regprocedure regrole regtype text tid time timestamp
	timestamptz timetz tsmultirange tsquery tsrange tstzmultirange tstzrange tsvector txid_snapshot
	unknown uuid varbit varchar xid xid8 xml
	_bool _bpchar _bytea _char _date _float4 _float8 _inet _int2 _int4 _int8 _interval _json _jsonb _name
	_numeric _oid _text _time _timestamp _timestamptz _uuid _varchar _regtype _regclass
	citext hstore ltree lquery ltxtquery vector halfvec sparsevec geometry geography`)

// pureOperators are PostgreSQL's own, and those of the extensions pg_trgm,
// hstore, ltree, vector and PostGIS, which are all immutable.
var pureOperators = wordSet("!! !~ !~* !~~ !~~* # ## #- #> #>> % & && &< &<| &> * *< *<= *<> *= *> *>= + - -> " +
	"->> -|- / < <-> << <<= <<| <= <> != <@ <^ = > >= >> >>= >^ ? ?# ?& ?- ?-| ?| ?|| @ @-@ @> @? @@ @@@ ^ ^@ | " +
	"|&> |/ |>> || ||/ ~ ~* ~<=~ ~<~ ~= ~>=~ ~>~ ~~ ~~* " +
	"<% %> <<% %>> <<-> <->> <<<-> <->>> <=> <#> <+> <~> <%> #= %% %# ?@> ?<@ ?~ ?@ &&& ~== |=| @@= ^<@ ^@> ^~ ^? ^@")

// pureCatalogs are the catalog's relations with the same content on a standby.
// Every other relation named pg_* shows a server or a session.
var pureCatalogs = wordSet(`
	pg_aggregate pg_am pg_amop pg_amproc pg_attrdef pg_attribute pg_auth_members pg_authid pg_cast pg_class
	pg_collation pg_constraint pg_conversion pg_database pg_db_role_setting pg_default_acl pg_depend
	pg_description pg_enum pg_event_trigger pg_extension pg_foreign_data_wrapper pg_foreign_server
	pg_foreign_table pg_group pg_index pg_indexes pg_inherits pg_init_privs pg_language pg_largeobject
	pg_largeobject_metadata pg_matviews pg_namespace pg_opclass pg_operator pg_opfamily pg_parameter_acl
	pg_partitioned_table pg_policies pg_policy pg_proc pg_publication pg_publication_namespace
	pg_publication_rel pg_publication_tables pg_range pg_rewrite pg_roles pg_rules pg_seclabel
	pg_seclabels pg_sequence pg_shadow pg_shdepend pg_shdescription pg_shseclabel pg_statistic
	pg_statistic_ext pg_statistic_ext_data pg_stats pg_stats_ext pg_stats_ext_exprs pg_tables
	pg_tablespace pg_transform pg_trigger pg_ts_config pg_ts_config_map pg_ts_dict pg_ts_parser
	pg_ts_template pg_type pg_user pg_user_mapping pg_user_mappings pg_views`)

// sequenceColumns are the columns of a sequence.
var sequenceColumns = wordSet(`is_called last_value log_cnt`)

// sampleMethods are the built-in ones of TABLESAMPLE.
var sampleMethods = wordSet(`bernoulli system`)

// clusterSettings have one value on every server of a cluster: they were
// fixed when the cluster was made, or when PostgreSQL was compiled for it.
var clusterSettings = wordSet(`
	block_size data_checksums integer_datetimes max_function_args max_identifier_length max_index_keys
	segment_size server_encoding wal_block_size wal_segment_size`)
