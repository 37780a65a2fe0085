/* What a SQLSTATE means: a row a class, and what stands out of its class. */
#include "unit.h"

#include <string.h>

#include "sqlstate.h"

struct example {
	const char *state;
	enum trouble_class class;
};

static const struct example examples[] = {
    {"", TROUBLE_TRANSIENT},          /* the connection itself */
    {"08006", TROUBLE_TRANSIENT},     /* connection_failure */
    {"40001", TROUBLE_TRANSIENT},     /* serialization_failure */
    {"40P01", TROUBLE_TRANSIENT},     /* deadlock_detected */
    {"53100", TROUBLE_TRANSIENT},     /* disk_full */
    {"53200", TROUBLE_TRANSIENT},     /* out_of_memory */
    {"53300", TROUBLE_TRANSIENT},     /* too_many_connections */
    {"57P01", TROUBLE_TRANSIENT},     /* admin_shutdown */
    {"57P03", TROUBLE_TRANSIENT},     /* cannot_connect_now */
    {"57014", TROUBLE_TRANSIENT},     /* query_canceled */
    {"55P03", TROUBLE_TRANSIENT},     /* lock_not_available */
    {"25006", TROUBLE_TRANSIENT},     /* read_only_sql_transaction */
    {"58030", TROUBLE_TRANSIENT},     /* io_error */
    {"XX000", TROUBLE_TRANSIENT},     /* unknown to us: held */
    {"25P02", TROUBLE_TRANSIENT},     /* the same */
    {"57000", TROUBLE_TRANSIENT},     /* the same */
    {"ZZZZZ", TROUBLE_TRANSIENT},     /* the same */
    {"28P01", TROUBLE_CONFIGURATION}, /* invalid_password */
    {"28000", TROUBLE_CONFIGURATION}, /* invalid_authorization_specification */
    {"3D000", TROUBLE_CONFIGURATION}, /* invalid_catalog_name */
    {"3F000", TROUBLE_CONFIGURATION}, /* invalid_schema_name */
    {"42P01", TROUBLE_CONFIGURATION}, /* undefined_table */
    {"42501", TROUBLE_CONFIGURATION}, /* insufficient_privilege */
    {"0A000", TROUBLE_CONFIGURATION}, /* feature_not_supported */
    {"53400", TROUBLE_CONFIGURATION}, /* configuration_limit_exceeded */
    {"IG001", TROUBLE_CONFIGURATION}, /* another instance */
    {"IG002", TROUBLE_CONFIGURATION}, /* too many dead letters */
    {"22P02", TROUBLE_DATA},          /* invalid_text_representation */
    {"22003", TROUBLE_DATA},          /* numeric_value_out_of_range */
    {"22008", TROUBLE_DATA},          /* datetime_field_overflow */
    {"21000", TROUBLE_DATA},          /* cardinality_violation */
    {"54000", TROUBLE_DATA},          /* program_limit_exceeded */
    {"23502", TROUBLE_DATA},          /* not_null_violation */
    {"23503", TROUBLE_DATA},          /* foreign_key_violation */
    {"23505", TROUBLE_DATA},          /* unique_violation */
    {"23514", TROUBLE_DATA},          /* check_violation */
    {"23P01", TROUBLE_DATA},          /* exclusion_violation */
    {"P0001", TROUBLE_DATA},          /* raise_exception */
    {"38000", TROUBLE_DATA},          /* external_routine_exception */
    {"39004", TROUBLE_DATA},          /* null_value_not_allowed */
    {"09000", TROUBLE_DATA},          /* triggered_action_exception */
    {"27000", TROUBLE_DATA},          /* triggered_data_change_violation */
    {"44000", TROUBLE_DATA},          /* with_check_option_violation */
};

static void
every_class_means_what_the_manual_says(void **state)
{
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(examples) / sizeof(examples[0]); i++) {
		if (sqlstate_class(examples[i].state) != examples[i].class)
			fail_msg("'%s' is %s and should be %s", examples[i].state,
			    trouble_name(sqlstate_class(examples[i].state)),
			    trouble_name(examples[i].class));
	}
}

static void
what_only_looks_like_a_class_is_held(void **state)
{
	(void)state;
	/* Not from the middle, and not by a shorter piece of a longer prefix. */
	assert_int_equal(sqlstate_class("02222"), TROUBLE_TRANSIENT);
	assert_int_equal(sqlstate_class("2"), TROUBLE_TRANSIENT);
	assert_int_equal(sqlstate_class("IG"), TROUBLE_TRANSIENT);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(every_class_means_what_the_manual_says),
	    cmocka_unit_test(what_only_looks_like_a_class_is_held),
	};

	return cmocka_run_group_tests_name("sqlstate", tests, NULL, NULL);
}
