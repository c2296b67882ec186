/* The configuration: defaults, every refusal with its text and place, overrides, round trip. */
#include <stdlib.h>
#include <string.h>

#include "cfg/schema.h"
#include "core/mem.h"
#include "core/str.h"
#include "mgr/config.h"
#include "mgr/keys.h"
#include "support/check.h"

#define PATHS "source: {path: /in}\ntarget: {path: /out}\n"

static int parse(mgr_config *config, const char *text, size_t len, mgr_err *err)
{
    *err = (mgr_err)MGR_ERR_INIT;
    memset(config, 0x5a, sizeof *config);
    return mgr_config_parse(config, mgr_config_tables, "x.yaml", text, len, NULL, 0, err);
}

static int parse_set(mgr_config *config, const char *text, const char *set, mgr_err *err)
{
    *err = (mgr_err)MGR_ERR_INIT;
    return mgr_config_parse(config, mgr_config_tables, "x.yaml", text, strlen(text), &set, 1, err);
}

static void check_row(const mgr_key *key, const mgr_key_table *table)
{
    CHECK_INT(key->required, key->fallback == NULL);
    CHECK_INT(key->kind == MGR_KEY_CHOICE, key->choices != NULL);
    CHECK(key->help[0] != '\0' && !strchr(key->help, '\n'));
    CHECK(key->offset + key->size <= offsetof(mgr_config, file));
    CHECK_INT(table->kind == MGR_OWNER_ALL, table->owner == NULL);
}

/* Several owners may have a key; what is stored must be the same. */
static void check_agrees(const mgr_key *first)
{
    mgr_row_walk at = {0};
    const mgr_key_table *table = NULL;
    mgr_owner kind = MGR_OWNER_COUNT;
    for (const mgr_key *key; (key = mgr_schema_next(mgr_config_tables, &at, &table));) {
        if (strcmp(key->name, first->name) != 0) { /* two keys never share a field */
            CHECK(key->offset + key->size <= first->offset ||
                  first->offset + first->size <= key->offset);
            continue;
        }
        CHECK(key->kind == first->kind && key->offset == first->offset && key->size == first->size);
        CHECK(key->min >= first->min && key->min <= first->min && key->max >= first->max &&
              key->max <= first->max);
        CHECK_INT(kind == MGR_OWNER_COUNT || kind == table->kind, true);
        if (table->kind == MGR_OWNER_SOURCE) /* 'auto' has one default for all */
            CHECK_TEXT(key->fallback, first->fallback);
        kind = table->kind;
    }
}

static void test_schema(void)
{
    mgr_key_list all;
    int last = -1;
    mgr_row_walk at = {0};
    const mgr_key_table *table = NULL;
    for (const mgr_key *key; (key = mgr_schema_next(mgr_config_tables, &at, &table));)
        check_row(key, table);
    mgr_schema_list(mgr_config_tables, &all);
    CHECK(all.n > 40);
    for (size_t i = 0; i < all.n; i++) {
        const int section = mgr_config_key_section(all.keys[i]);
        CHECK_INT(section < 0, strchr(all.keys[i]->name, '.') == NULL);
        CHECK(section >= last); /* the dump opens each section once */
        last = section;
        check_agrees(all.keys[i]);
    }
    CHECK(mgr_schema_find(mgr_config_tables, "upcycle") == NULL);
    CHECK_TEXT(mgr_config_key_leaf(mgr_schema_find(mgr_config_tables, "upcycle.seed")), "seed");
    CHECK_TEXT(mgr_config_key_leaf(mgr_schema_find(mgr_config_tables, "mode")), "mode");
}

static void test_defaults(void)
{
    mgr_config c;
    mgr_err err;
    CHECK_INT(parse(&c, PATHS, strlen(PATHS), &err), MGR_OK);
    CHECK_TEXT(c.mode, "upcycle");
    CHECK_INT(c.memory_per_rank, 2147483648);
    CHECK_TEXT(c.source.path, "/in");
    CHECK_TEXT(c.source.format, "auto");
    CHECK_TEXT(c.source.iteration, "latest");
    CHECK_TEXT(c.source.tokenizer, "");
    CHECK_INT(c.model.num_layers, 0);
    CHECK_INT(c.model.vocab_size, 0);
    CHECK(c.model.norm_epsilon == 0 && c.model.rotary_base == 0);
    CHECK_INT(c.model.bos_token_id, -1);
    CHECK_INT(c.model.eos_token_id, -1);
    CHECK_TEXT(c.upcycle.method, "drop");
    CHECK_INT(c.upcycle.experts, 8);
    CHECK_INT(c.upcycle.top_k, 2);
    CHECK(c.upcycle.ratio == 0.5);
    CHECK_INT(c.upcycle.seed, 1234);
    CHECK_TEXT(c.upcycle.index_sets, "shared");
    CHECK(!c.upcycle.shuffle);
    CHECK_TEXT(c.upcycle.router, "uniform");
    CHECK(c.upcycle.router_std == 0.02 && c.upcycle.noise_std == 0.02);
    CHECK_TEXT(c.target.path, "/out");
    CHECK_TEXT(c.target.format, "moe-recipes");
    CHECK_INT(c.target.expert_parallel, 1);
    CHECK_INT(c.target.tensor_parallel, 1);
    CHECK_INT(c.target.pipeline_parallel, 1);
    CHECK_INT(c.target.make_vocab_size_divisible_by, 0);
    CHECK_TEXT(c.target.names, "auto");
    CHECK_INT(c.target.iteration, 0);
    CHECK_TEXT(c.target.dtype, "bfloat16");
    CHECK_INT(c.target.max_shard_size, 5000000000);
    CHECK_TEXT(c.target.compression, "none");
    CHECK_TEXT(c.file, "x.yaml");
}

static const char full[] = "mode: upcycle                 # a comment\n"
                           "memory_per_rank: 512 MiB\n"
                           "source:\n"
                           "  path: \"/a b/\\u00e9\\n\"\n"
                           "  format: 'megatron-dist'\n"
                           "  iteration: 0001000\n"
                           "  tokenizer: |-\n"
                           "    /t\n"
                           "model:\n"
                           "  num_layers: 24\n"
                           "  norm_epsilon: 1e-05\n"
                           "  rotary_base: 1000000\n"
                           "  bos_token_id: -1\n"
                           "  eos_token_id: 7\n"
                           "upcycle: {experts: 4, top_k: 4, ratio: 1, shuffle: true,\n"
                           "          seed: 18446744073709551615, index_sets: independent}\n"
                           "target:\n"
                           "  path: out\n"
                           "  dtype: source\n"
                           "  max_shard_size: \"1.5GB\"\n";

static void test_full(void)
{
    mgr_config c;
    mgr_err err;
    CHECK_INT(parse(&c, full, sizeof full - 1, &err), MGR_OK);
    CHECK_TEXT(err.msg, "");
    CHECK_TEXT(c.mode, "upcycle");
    CHECK_INT(c.memory_per_rank, 512 << 20);
    CHECK_TEXT(c.source.path, "/a b/\xc3\xa9\n");
    CHECK_TEXT(c.source.format, "megatron-dist");
    CHECK_TEXT(c.source.iteration, "0001000");
    CHECK_TEXT(c.source.tokenizer, "/t");
    CHECK_INT(c.model.num_layers, 24);
    CHECK(c.model.norm_epsilon == 1e-5);
    CHECK(c.model.rotary_base == 1e6);
    CHECK_INT(c.model.bos_token_id, -1);
    CHECK_INT(c.model.eos_token_id, 7);
    CHECK_INT(c.upcycle.experts, 4);
    CHECK(c.upcycle.ratio == 1);
    CHECK(c.upcycle.seed == UINT64_MAX);
    CHECK_TEXT(c.upcycle.index_sets, "independent");
    CHECK(c.upcycle.shuffle);
    CHECK_INT(c.target.max_shard_size, 1500000000);
    CHECK_INT(mgr_config_place(&c, "upcycle.seed")->line, 16);
    CHECK_INT(mgr_config_place(&c, "upcycle.seed")->column, 11);
    CHECK(mgr_config_place(&c, "upcycle.router") == NULL);
    CHECK_INT(mgr_config_place(&c, "mode")->line, 1);
    CHECK_INT(mgr_config_place(&c, "mode")->column, 1);
}

/* Each text is refused with exactly this message. */
static const struct {
    const char *text, *message;
} refused[] = {
    /* keys */
    {"upcycle:\n  seed: 1\n  ratoi: 1\n", "x.yaml:3:3: unknown key 'ratoi'; did you mean 'ratio'?"},
    {"upcycel:\n  seed: 1\n", "x.yaml:1:1: unknown key 'upcycel'; did you mean 'upcycle'?"},
    {"upcycel: [a, &b c]\n", "x.yaml:1:1: unknown key 'upcycel'; did you mean 'upcycle'?"},
    {"mod: upcycle\n", "x.yaml:1:1: unknown key 'mod'; did you mean 'mode'?"},
    {"seed: 1\n", "x.yaml:1:1: unknown key 'seed'; did you mean 'upcycle.seed'?"},
    {"path: 1\n", "x.yaml:1:1: unknown key 'path'; did you mean 'source.path' or 'target.path'?"},
    {"upcycle: {path: 1}\n",
     "x.yaml:1:11: unknown key 'path'; did you mean 'source.path' or 'target.path'?"},
    {"upcycle.seed: 1\n", "x.yaml:1:1: unknown key 'upcycle.seed'; write 'seed' below 'upcycle:'"},
    {"upcycle: {mode: a}\n", "x.yaml:1:11: unknown key 'mode'; it belongs to the top level"},
    {"quite_another: 1\n", "x.yaml:1:1: unknown key 'quite_another'"},
    {"upcycle:\n  quite_another: 1\n", "x.yaml:2:3: unknown key 'quite_another' in 'upcycle'"},
    {"\"mo\\0de\": 1\n", "x.yaml:1:1: unknown key 'mo?de'; did you mean 'mode'?"},
    {"'': 1\n", "x.yaml:1:1: unknown key ''"},
    {"<<: {mode: upcycle}\n", "x.yaml:1:1: unknown key '<<'"},
    {"? [a]\n: 1\n", "x.yaml:1:3: a key must be a word, is a sequence"},
    {"upcycle:\n  ? {a: b}\n  : 1\n", "x.yaml:2:5: a key must be a word, is a mapping"},
    {"mode: upcycle\nmode: upcycle\n", "x.yaml:2:1: duplicate key 'mode', first at line 1"},
    {"upcycle:\n  experts: 1\n  seed: 1\n\n  seed: 1\n",
     "x.yaml:5:3: duplicate key 'seed', first at line 3"},
    {"upcycle: {seed: 1}\nmode: upcycle\nupcycle: {ratio: 1}\n",
     "x.yaml:3:1: duplicate key 'upcycle', first at line 1"},
    {PATHS "mode: reshard\n...\n", ""},
    {"target: {path: b}\n", "x.yaml: required key 'source.path' is missing"},
    {"source: {path: b}\n", "x.yaml: required key 'target.path' is missing"},
    {"source: {path: ''}\n", "x.yaml:1:10: 'source.path' is empty"},
    {PATHS "upcycle:\n  experts: 2\n  top_k: 3\n",
     "x.yaml:5:3: 'upcycle.top_k' is 3, must not exceed 'upcycle.experts', which is 2"},
    {PATHS "upcycle:\n  experts: 1\n", "x.yaml:4:3: 'upcycle.top_k' is 2 by default, must not "
                                       "exceed 'upcycle.experts', which is 1"},
    {PATHS "upcycle:\n  top_k: 9\n",
     "x.yaml:4:3: 'upcycle.top_k' is 9, must not exceed 'upcycle.experts', which is 8"},

    /* shape */
    {"", "x.yaml: the configuration is empty"},
    {"# nothing\n", "x.yaml: the configuration is empty"},
    {"---\n", "x.yaml: the configuration is empty"},
    {"word\n", "x.yaml:1:1: the configuration is a single value, must be a mapping of keys"},
    {"\n - a\n", "x.yaml:2:2: the configuration is a sequence, must be a mapping of keys"},
    {PATHS "---\na: b\n", "x.yaml:3:1: a second document begins here, only one is allowed"},
    {"upcycle: drop\n", "x.yaml:1:1: 'upcycle' is a single value, must be a mapping of keys"},
    {"mode: upcycle\nupcycle:\ntarget:\n",
     "x.yaml:2:1: 'upcycle' is empty, must be a mapping of keys"},
    {"upcycle: [a]\n", "x.yaml:1:1: 'upcycle' is a sequence, must be a mapping of keys"},
    {"source:\n  path: [a, b]\n",
     "x.yaml:2:3: 'source.path' is a sequence, must be a single value"},
    {"source:\n  path: {a: b}\n", "x.yaml:2:3: 'source.path' is a mapping, must be a single value"},
    {"mode: {a: b}\n", "x.yaml:1:1: 'mode' is a mapping, must be a single value"},
    {"source:\n  path:\n", "x.yaml:2:3: 'source.path' has no value"},
    {"source: {path: ~}\n", "x.yaml:1:10: 'source.path' is null, leave it out for its default"},
    {"source: {path: NULL}\n", "x.yaml:1:10: 'source.path' is null, leave it out for its default"},
    {"mode: &a upcycle\n", "x.yaml:1:7: anchor '&a' is not allowed in a configuration"},
    {"&root mode: upcycle\n", "x.yaml:1:1: anchor '&root' is not allowed in a configuration"},
    {"source: &s {path: a}\n", "x.yaml:1:9: anchor '&s' is not allowed in a configuration"},
    {"mode: *a\n", "x.yaml:1:7: alias '*a' is not allowed in a configuration"},
    {"mode: !!str upcycle\n",
     "x.yaml:1:7: tag 'tag:yaml.org,2002:str' is not allowed in a configuration"},
    {"mode: ! upcycle\n", "x.yaml:1:7: tag '!' is not allowed in a configuration"},
    {"--- !t\nmode: upcycle\n", "x.yaml:1:5: tag '!t' is not allowed in a configuration"},
    {"%TAG ! tag:x,1:\n---\nmode: upcycle\n",
     "x.yaml:1:1: directive '%TAG' is not allowed in a configuration"},
    {"mode: upcycle: a\n",
     "x.yaml:1:14: not valid YAML: no key is expected here: is this line, or the one before, "
     "indented too far? a text with ': ' in it needs quotes"},
    {"mode: \"upcycle\n", "x.yaml:2:1: not valid YAML: a quote is not closed"},
    {"mode: upcycle\n\tseed: 1\n",
     "x.yaml:2:1: not valid YAML: a tab indents this line, YAML takes blanks only"},
    {"upcycle:\n\tseed: 1\n",
     "x.yaml:2:1: not valid YAML: a tab indents this line, YAML takes blanks only"},
    {"upcycle:\n  seed: 1\n\texperts: 1\n",
     "x.yaml:3:1: not valid YAML: a tab indents this line, YAML takes blanks only"},
    {"upcycle:\n  seed: 1\n ratio: 1\n",
     "x.yaml:3:2: not valid YAML: this line is not indented as the keys before it, or a quote or "
     "bracket is not closed"},
    {"upcycle:\n  seed: 1\n    ratio: 1\n",
     "x.yaml:2:3: 'upcycle.seed' goes on in the next line: is that indented too far?"},
    {"mode: upcycle\nsource\ntarget: {path: a}\n",
     "x.yaml:3:1: not valid YAML: the line before is no 'key: value'"},
    {"mode: @a\n", "x.yaml:1:7: not valid YAML: found character that cannot start any token (while "
                   "scanning for the next token at line 1)"},

    /* bytes */
    {"mode: a\xff\n", "x.yaml:1:8: byte 0xff is not valid UTF-8"},
    {"\xff\xfem\n", "x.yaml:1:1: byte 0xff is not valid UTF-8"},
    {"a: \xc3\xa9\n\xc3\xa9\xed\xa0\x80\n", "x.yaml:2:2: byte 0xed is not valid UTF-8"},
    {"a: \xc0\x80\n", "x.yaml:1:4: byte 0xc0 is not valid UTF-8"},
    {"a: \xf4\x90\x80\x80\n", "x.yaml:1:4: byte 0xf4 is not valid UTF-8"},
    {"a: \xc3", "x.yaml:1:4: byte 0xc3 is not valid UTF-8"},
    {"a: b\r\n# c\r# d\n\x1b\n", "x.yaml:4:1: control character U+001B in the text"},
    {"a: \xc2\x80\n", "x.yaml:1:4: control character U+0080 in the text"},
    {"# \xef\xbf\xbf\n", "x.yaml:1:3: control character U+FFFF in the text"},
    {"\xef\xbb\xbfmoed: a\n", "x.yaml:1:1: unknown key 'moed'; did you mean 'mode'?"},
    {"source: {path: \"a\\0b\"}\n", "x.yaml:1:10: 'source.path' contains a NUL byte"},

    /* values */
    {"upcycle: {shuffle: True}\nmode: merge\n",
     "x.yaml:2:1: 'mode' is 'merge', must be upcycle or reshard"},
    {"mode: merge\n", "x.yaml:1:1: 'mode' is 'merge', must be upcycle or reshard"},
    {"mode: Upcycle\n", "x.yaml:1:1: 'mode' is 'Upcycle', must be upcycle or reshard"},
    {"mode: upcycle|reshard\n",
     "x.yaml:1:1: 'mode' is 'upcycle|reshard', must be upcycle or reshard"},
    {"source: {iteration: newest}\n",
     "x.yaml:1:10: 'source.iteration' is 'newest', must be latest, release or a number"},
    {"source: {iteration: N}\n",
     "x.yaml:1:10: 'source.iteration' is 'N', must be latest, release or a number"},
    {"source: {iteration: -5}\n",
     "x.yaml:1:10: 'source.iteration' is '-5', must be latest, release or a number"},
    {"source: {iteration: 12345678901234567890}\n",
     "x.yaml:1:10: 'source.iteration' is '12345678901234567890', must be latest, release or a "
     "number"},
    {"target: {dtype: bf15}\n", "x.yaml:1:10: 'target.dtype' is 'bf15', must be source, bfloat16, "
                                "float16 or float32"},
    {"upcycle:\n  experts: eight\n",
     "x.yaml:2:3: 'upcycle.experts' is 'eight', must be a whole number"},
    {"upcycle:\n  experts: 8x\n", "x.yaml:2:3: 'upcycle.experts' is '8x', must be a whole number"},
    {"upcycle:\n  experts: 8.0\n",
     "x.yaml:2:3: 'upcycle.experts' is '8.0', must be a whole number"},
    {"upcycle:\n  experts: 010\n",
     "x.yaml:2:3: 'upcycle.experts' is '010', must be a whole number"},
    {"upcycle:\n  experts: 0x10\n",
     "x.yaml:2:3: 'upcycle.experts' is '0x10', must be a whole number"},
    {"upcycle:\n  experts: +8\n", "x.yaml:2:3: 'upcycle.experts' is '+8', must be a whole number"},
    {"upcycle:\n  experts: 1e3\n",
     "x.yaml:2:3: 'upcycle.experts' is '1e3', must be a whole number"},
    {"upcycle:\n  experts: 8 9\n",
     "x.yaml:2:3: 'upcycle.experts' is '8 9', must be a whole number"},
    {"upcycle:\n  experts: -\xc2\xa0\n", "x.yaml:2:3: 'upcycle.experts' is '-?"
                                         "?', must be a whole number"},
    {"upcycle:\n  experts: '8'\n",
     "x.yaml:2:3: 'upcycle.experts' is '8' in quotes, must be a whole "
     "number without quotes"},
    {"upcycle:\n  experts: |\n    8\n",
     "x.yaml:2:3: 'upcycle.experts' is '8?' in quotes, must be a "
     "whole number without quotes"},
    {"upcycle:\n  experts: -1\n", "x.yaml:2:3: 'upcycle.experts' is -1, must be within 1 .. 65536"},
    {"upcycle:\n  experts: 0\n", "x.yaml:2:3: 'upcycle.experts' is 0, must be within 1 .. 65536"},
    {"upcycle:\n  experts: 65537\n",
     "x.yaml:2:3: 'upcycle.experts' is 65537, must be within 1 .. 65536"},
    {"upcycle:\n  seed: -1\n",
     "x.yaml:2:3: 'upcycle.seed' is -1, must be within 0 .. 18446744073709551615"},
    {"upcycle:\n  seed: 18446744073709551616\n",
     "x.yaml:2:3: 'upcycle.seed' is 18446744073709551616, must be within 0 .. "
     "18446744073709551615"},
    {"model:\n  eos_token_id: -2\n",
     "x.yaml:2:3: 'model.eos_token_id' is -2, must be within -1 .. 2147483647"},
    {"model:\n  eos_token_id: 99999999999999999999\n",
     "x.yaml:2:3: 'model.eos_token_id' is 99999999999999999999, must be within -1 .. 2147483647"},
    {"model:\n  eos_token_id: a\n",
     "x.yaml:2:3: 'model.eos_token_id' is 'a', must be a whole number"},
    {"model:\n  eos_token_id: '1'\n",
     "x.yaml:2:3: 'model.eos_token_id' is '1' in quotes, must be a "
     "whole number without quotes"},
    {"upcycle:\n  ratio: 1.5\n", "x.yaml:2:3: 'upcycle.ratio' is 1.5, must be within 0 .. 1"},
    {"upcycle:\n  ratio: -1e-300\n",
     "x.yaml:2:3: 'upcycle.ratio' is -1e-300, must be within 0 .. 1"},
    {"upcycle:\n  ratio: 1e999\n", "x.yaml:2:3: 'upcycle.ratio' is 1e999, must be within 0 .. 1"},
    {"upcycle:\n  ratio: half\n", "x.yaml:2:3: 'upcycle.ratio' is 'half', must be a number"},
    {"upcycle:\n  ratio: .nan\n", "x.yaml:2:3: 'upcycle.ratio' is '.nan', must be a number"},
    {"upcycle:\n  ratio: nan\n", "x.yaml:2:3: 'upcycle.ratio' is 'nan', must be a number"},
    {"upcycle:\n  ratio: inf\n", "x.yaml:2:3: 'upcycle.ratio' is 'inf', must be a number"},
    {"upcycle:\n  ratio: 0x1p-1\n", "x.yaml:2:3: 'upcycle.ratio' is '0x1p-1', must be a number"},
    {"upcycle:\n  ratio: 0,5\n", "x.yaml:2:3: 'upcycle.ratio' is '0,5', must be a number"},
    {"upcycle:\n  ratio: 1e\n", "x.yaml:2:3: 'upcycle.ratio' is '1e', must be a number"},
    {"upcycle:\n  ratio: .\n", "x.yaml:2:3: 'upcycle.ratio' is '.', must be a number"},
    {"upcycle:\n  ratio: \"0.5\"\n", "x.yaml:2:3: 'upcycle.ratio' is '0.5' in quotes, must be a "
                                     "number without quotes"},
    {"upcycle:\n  shuffle: yes\n", "x.yaml:2:3: 'upcycle.shuffle' is 'yes', must be true or false"},
    {"upcycle:\n  shuffle: off\n", "x.yaml:2:3: 'upcycle.shuffle' is 'off', must be true or false"},
    {"upcycle:\n  shuffle: 1\n", "x.yaml:2:3: 'upcycle.shuffle' is '1', must be true or false"},
    {"upcycle:\n  shuffle: 'true'\n", "x.yaml:2:3: 'upcycle.shuffle' is 'true' in quotes, must be "
                                      "true or false without quotes"},
    {"memory_per_rank: 1MiB\n",
     "x.yaml:1:1: 'memory_per_rank' is 1MiB, must be within 64MiB .. 8192TiB"},
    {"memory_per_rank: 9000TiB\n",
     "x.yaml:1:1: 'memory_per_rank' is 9000TiB, must be within 64MiB .. 8192TiB"},
    {"memory_per_rank: -1GiB\n",
     "x.yaml:1:1: 'memory_per_rank' is '-1GiB', must be a size in bytes "
     "such as 512MiB or 5GB"},
    {"memory_per_rank: 2GiBs\n",
     "x.yaml:1:1: 'memory_per_rank' is '2GiBs', must be a size in bytes "
     "such as 512MiB or 5GB"},
    {"memory_per_rank: 2G\n", "x.yaml:1:1: 'memory_per_rank' is '2G', which may mean either: write "
                              "2GiB (binary) or 2GB (decimal)"},
    {"source:\n  path: ~/in\n", "x.yaml:2:3: 'source.path' is '~/in', but '~' is not expanded: "
                                "write the home folder in full"},
    {"target:\n  path: $SCRATCH/out\n",
     "x.yaml:2:3: 'target.path' is '$SCRATCH/out', but variables are not expanded: write the path "
     "in full, or use --set target.path=... and let the shell do it"},
    {"target:\n  path: /a/${USER}\n",
     "x.yaml:2:3: 'target.path' is '/a/${USER}', but variables are not expanded: write the path in "
     "full, or use --set target.path=... and let the shell do it"},
    {"memory_per_rank: lots\n", "x.yaml:1:1: 'memory_per_rank' is 'lots', must be a size in bytes "
                                "such as 512MiB or 5GB"},
    {"source: {format: 12345678901234567890123456789012}\n",
     "x.yaml:1:10: 'source.format' is 32 bytes long, at most 31 fit"},
};

static void test_refused(void)
{
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        mgr_config c;
        mgr_err err;
        const int rc = parse(&c, refused[i].text, strlen(refused[i].text), &err);
        CHECK_TEXT(err.msg, refused[i].message);
        CHECK_INT(rc, refused[i].message[0] ? MGR_ERR_CONFIG : MGR_OK);
        if (rc != MGR_OK) /* written only on success */
            CHECK_INT(c.mode[0], 0x5a);
    }
}

/* What a C string cannot say, and what is too long. */
static void test_large(void)
{
    static const char nul[] = "mode: upcycle\nmo\0de: a\n";
    mgr_config c;
    mgr_err err;
    CHECK_INT(parse(&c, nul, sizeof nul - 1, &err), MGR_ERR_CONFIG);
    CHECK_TEXT(err.msg, "x.yaml:2:3: NUL byte in the text");

    mgr_buf text = {0};
    for (size_t n = 1023; n <= 1024; n++) {
        text.len = 0;
        CHECK_INT(mgr_buf_text(&text, "target: {path: b}\nsource:\n  path: ", &err), MGR_OK);
        for (size_t i = 0; i < n; i++)
            CHECK_INT(mgr_buf_text(&text, "p", &err), 0);
        CHECK_INT(parse(&c, text.data, text.len, &err), n == 1023 ? MGR_OK : MGR_ERR_CONFIG);
        CHECK_TEXT(err.msg, n == 1023
                                ? ""
                                : "x.yaml:3:3: 'source.path' is 1024 bytes long, at most 1023 fit");
    }
    err = (mgr_err)MGR_ERR_INIT;
    text.len = 0;
    while (text.len <= (1 << 20)) /* a comment of one byte too much */
        CHECK_INT(mgr_buf_text(&text, "#", &err), 0);
    CHECK_INT(parse(&c, text.data, text.len, &err), MGR_ERR_CONFIG);
    CHECK_TEXT(err.msg, "x.yaml: the file has 1048577 bytes, at most 1048576 are read");
    CHECK_INT(parse(&c, text.data, text.len - 1, &err), MGR_ERR_CONFIG);
    CHECK_TEXT(err.msg, "x.yaml: the configuration is empty");

    memset(text.data, '[', text.len); /* no nesting is followed */
    CHECK_INT(parse(&c, text.data, text.len - 1, &err), MGR_ERR_CONFIG);
    CHECK_TEXT(err.msg, "x.yaml:1:1: the configuration is a sequence, must be a mapping of keys");
    memset(text.data, '{', text.len);
    CHECK_INT(parse(&c, text.data, text.len - 1, &err), MGR_ERR_CONFIG);
    CHECK_TEXT(err.msg, "x.yaml:1:2: a key must be a word, is a mapping");
    mgr_buf_clear(&text);

    char name[1025] = {0};
    memset(name, 'n', 1024);
    err = (mgr_err)MGR_ERR_INIT;
    CHECK_INT(mgr_config_parse(&c, mgr_config_tables, name, PATHS, strlen(PATHS), NULL, 0, &err),
              MGR_ERR_CONFIG);
    CHECK_TEXT(err.msg, "the name of the configuration file has 1024 bytes, at most 1023 fit");
}

static const struct {
    const char *set, *message;
} refused_sets[] = {
    {"upcycle.seed", "--set: 'upcycle.seed' is not of the form key=value"},
    {"", "--set: '' is not of the form key=value"},
    {"=1", "--set: '' is not of the form key=value"},
    {"upcycle.sead=1", "--set: unknown key 'upcycle.sead'; did you mean 'upcycle.seed'?"},
    {"seed=1", "--set: unknown key 'seed'; did you mean 'upcycle.seed'?"},
    {"path=1", "--set: unknown key 'path'; did you mean 'source.path' or 'target.path'?"},
    {"source=1", "--set: unknown key 'source'"},
    {"completely.different=1", "--set: unknown key 'completely.different'"},
    {"upcycle.ratio=1.5", "--set upcycle.ratio: 'upcycle.ratio' is 1.5, must be within 0 .. 1"},
    {"upcycle.seed=", "--set upcycle.seed: 'upcycle.seed' is '', must be a whole number"},
    {"upcycle.seed='1'", "--set upcycle.seed: 'upcycle.seed' is ''1'', must be a whole number"},
    {"source.path=", "--set source.path: 'source.path' is empty"},
    {"source.path=~", "--set source.path: 'source.path' is null, leave it out for its default"},
    {"source.path=\xff", "--set source.path: 'source.path' is not valid UTF-8"},
    {"upcycle.top_k=5", "--set upcycle.top_k: 'upcycle.top_k' is 5, must not exceed "
                        "'upcycle.experts', which is 4"},
};

static void test_sets(void)
{
    static const char text[] = PATHS "upcycle: {experts: 4, seed: 5}\n";
    mgr_config c;
    mgr_err err;
    for (size_t i = 0; i < sizeof refused_sets / sizeof refused_sets[0]; i++) {
        CHECK_INT(parse_set(&c, text, refused_sets[i].set, &err), MGR_ERR_USAGE);
        CHECK_TEXT(err.msg, refused_sets[i].message);
    }
    static const char *const sets[] = {"upcycle.seed=6", "source.path=/x=y z", "upcycle.seed=7",
                                       "source.tokenizer="};
    err = (mgr_err)MGR_ERR_INIT;
    CHECK_INT(mgr_config_parse(&c, mgr_config_tables, "x.yaml", text, strlen(text), sets, 4, &err),
              MGR_OK);
    CHECK_INT(c.upcycle.seed, 7);
    CHECK_TEXT(c.source.path, "/x=y z"); /* split at the first '=' */
    CHECK_TEXT(c.source.tokenizer, "");
    CHECK_INT(mgr_config_place(&c, "upcycle.seed")->line, MGR_PLACE_SET);

    /* a shorter text over a longer one leaves nothing behind */
    CHECK_INT(parse_set(&c, "source: {path: /long}\ntarget: {path: b}\n", "source.path=s", &err),
              MGR_OK);
    CHECK(memcmp(c.source.path, "s\0\0\0\0\0", 6) == 0);
    /* a required key may come from the command line alone */
    CHECK_INT(parse_set(&c, "source: {path: a}\n", "target.path=b", &err), MGR_OK);
}

static void check_fail(const mgr_config *c, const char *key, int code, const char *message)
{
    mgr_err err = MGR_ERR_INIT;
    CHECK_INT(mgr_config_fail(c, key, &err, "no %s %d", "such", 1), code);
    CHECK_TEXT(err.msg, message);
    CHECK_INT(err.code, code);
}

static void test_fail(void)
{
    mgr_config c;
    mgr_err err;
    CHECK_INT(parse_set(&c, PATHS "upcycle:\n   method: drop\n", "target.dtype=source", &err), 0);
    check_fail(&c, "upcycle.method", MGR_ERR_CONFIG, "x.yaml:4:4: no such 1");
    check_fail(&c, "upcycle.router", MGR_ERR_CONFIG, "x.yaml: no such 1");
    check_fail(&c, "target.dtype", MGR_ERR_USAGE, "--set target.dtype: no such 1");
}

/* Same values of the keys that apply; places and file name may differ. */
static void check_same(const mgr_config *a, const mgr_config *b)
{
    mgr_key_list all;
    mgr_schema_list(mgr_config_tables, &all);
    for (size_t i = 0; i < all.n; i++) {
        const mgr_key *const key = mgr_schema_row(mgr_config_tables, a, all.keys[i]->name);
        if (key &&
            memcmp((const char *)a + key->offset, (const char *)b + key->offset, key->size) != 0) {
            CHECK(!"the dump changed a value");
            fprintf(stderr, "  key '%s'\n", key->name);
        }
    }
}

static void round_trip(const mgr_config *c, mgr_buf *text)
{
    mgr_config again;
    mgr_err err = MGR_ERR_INIT;
    text->len = 0;
    CHECK_INT(mgr_config_dump(c, mgr_config_tables, text, &err), MGR_OK);
    CHECK_INT(parse(&again, text->data, text->len, &err), MGR_OK);
    CHECK_TEXT(err.msg, "");
    if (err.code == MGR_OK)
        check_same(c, &again);
}

static const char dumped[] = "mode: upcycle\n"
                             "memory_per_rank: 512MiB\n"
                             "io_threads: auto\n"
                             "source:\n"
                             "  path: \"/a b/\xc3\xa9\\u000A\"\n"
                             "  format: megatron-dist\n"
                             "  tokenizer: /t\n"
                             "  allow_nonfinite: false\n"
                             "  iteration: 0001000\n"
                             "  unknown: refuse\n"
                             "  mtp: keep\n"
                             "  weights: auto\n"
                             "  sha256: false\n"
                             "model:\n"
                             "  num_layers: 24\n"
                             "  hidden_size: 0\n"
                             "  ffn_hidden_size: 0\n"
                             "  num_attention_heads: 0\n"
                             "  num_query_groups: 0\n"
                             "  kv_channels: 0\n"
                             "  vocab_size: 0\n"
                             "  max_position_embeddings: 0\n"
                             "  moe_router_topk: 0\n"
                             "  norm_epsilon: 1.0e-05\n"
                             "  rotary_base: 1000000.0\n"
                             "  bos_token_id: -1\n"
                             "  eos_token_id: 7\n"
                             "upcycle:\n"
                             "  method: drop\n"
                             "  experts: 4\n"
                             "  top_k: 4\n"
                             "  expert_width: 0\n"
                             "  slices: 0\n"
                             "  cut: slices\n"
                             "  scale: none\n"
                             "  router_pre_softmax: false\n"
                             "  experts_from: \"\"\n"
                             "  experts_file: \"\"\n"
                             "  neurons_file: \"\"\n"
                             "  layers_from: \"\"\n"
                             "  seed: 18446744073709551615\n"
                             "  shuffle: true\n"
                             "  router: uniform\n"
                             "  moe_layer_freq: \"1\"\n"
                             "  encoder_moe_layer_freq: \"\"\n"
                             "  ratio: 1.0\n"
                             "  layer_ratio: \"\"\n"
                             "  matrix_ratio: \"\"\n"
                             "  index_sets: independent\n"
                             "  redraw_mean: own\n"
                             "  redraw_std: 0.0\n"
                             "  shared_expert: none\n"
                             "  shared_slices: 1\n"
                             "  shared_gate: false\n"
                             "target:\n"
                             "  path: out\n"
                             "  format: moe-recipes\n"
                             "  sha256: false\n"
                             "  dtype: source\n"
                             "  expert_parallel: 1\n"
                             "  names: auto\n"
                             "  max_shard_size: 1500MB\n"
                             "  config: {}\n";

static void test_dump(void)
{
    static const char *const texts[] = {
        "a",
        "/a/b.c",
        "~",
        "null",
        "NULL",
        "true",
        "No",
        "12",
        "1e5",
        "-",
        "- a",
        "a: b",
        "a #b",
        "#",
        "'",
        "\"",
        "\\",
        "a\\n\"b",
        " lead",
        "trail ",
        "a\tb",
        "a\nb",
        "\r\n",
        "\x01\x7f",
        "{a}",
        "[",
        "*a",
        "&a",
        "!a",
        "|",
        ">",
        "%a",
        "@a",
        "`a",
        "a,b",
        "\xc3\xa9",
        "\xc2\x85",
        "\xe2\x80\xa8",
        "\xef\xbb\xbf",
        "\xf0\x9f\x98\x80",
        "...",
        "---",
        "=",
        "<<",
        "?",
        "\xef\xbf\xbf",
        "nan",
        "inf.",
    };
    static const double reals[] = {
        0.1,  0.3,   1.0 / 3, 5e-324, 2.2250738585072014e-308, 1, 0.02, 0.99999999999999989,
        1e-5, 123e-7};
    static const uint64_t sizes[] = {1u << 26,      (1u << 26) + 1,    5000000000,
                                     1000000000000, UINT64_C(1) << 53, (UINT64_C(1) << 53) - 1,
                                     1536u << 20};
    mgr_config c;
    mgr_err err;
    mgr_buf text = {0};
    CHECK_INT(parse(&c, full, sizeof full - 1, &err), MGR_OK);
    round_trip(&c, &text);
    CHECK_TEXT(text.data, dumped);
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        memset(c.upcycle.moe_layer_freq, 0, sizeof c.upcycle.moe_layer_freq);
        memcpy(c.upcycle.moe_layer_freq, texts[i], strlen(texts[i]));
        round_trip(&c, &text);
    }
    /* nothing that an editor hides or another reader folds stays unescaped */
    (void)snprintf(c.source.path, sizeof c.source.path, "%s",
                   "a\xe2\x80\xa8\xef\xbb\xbf\xc2\x85\x7f\xef\xbf\xbe");
    round_trip(&c, &text);
    CHECK_HAS(text.data, "  path: \"a\\u2028\\uFEFF\\u0085\\u007F\\uFFFE\"\n");
    for (size_t i = 0; i < sizeof reals / sizeof reals[0]; i++) {
        c.upcycle.ratio = reals[i];
        c.model.rotary_base = 1 / (reals[i] + 1e-12);
        round_trip(&c, &text);
    }
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        c.target.max_shard_size = sizes[i];
        round_trip(&c, &text);
    }
    mgr_buf_clear(&text);
}

/* The next name of a kind; NULL behind the last. */
static const char *name_at(mgr_owner kind, size_t idx)
{
    const mgr_key_table *t;
    for (size_t i = 0; (t = mgr_config_tables(i)); i++)
        if (t->kind == kind && idx-- == 0)
            return t->owner;
    return NULL;
}

static size_t dump_twice(const char *mode, const char *source, const char *target,
                         const char *method, const char *router)
{
    char text[400], upcycle[120] = "";
    mgr_config c;
    mgr_err err;
    mgr_buf first = {0}, second = {0};
    if (method)
        (void)snprintf(upcycle, sizeof upcycle, "upcycle: {method: %s, router: %s}\n", method,
                       router);
    (void)snprintf(
        text, sizeof text,
        "mode: %s\nsource: {path: /in, format: %s}\ntarget: {path: /out, format: %s}\n%s", mode,
        source, target, upcycle);
    CHECK_INT(parse(&c, text, strlen(text), &err), MGR_OK);
    round_trip(&c, &first);
    CHECK_INT(parse(&c, first.data, first.len, &err), MGR_OK);
    CHECK_TEXT(err.msg, "");
    round_trip(&c, &second);
    CHECK_TEXT(first.data, second.data);
    mgr_buf_clear(&first);
    mgr_buf_clear(&second);
    return 1;
}

/* Whatever is chosen, the dump is a configuration, and its dump the same text. */
static void test_every_choice(void)
{
    const char *source, *target, *method, *router;
    size_t n = 0;
    for (size_t s = 0; (source = name_at(MGR_OWNER_SOURCE, s)); s++)
        for (size_t t = 0; (target = name_at(MGR_OWNER_TARGET, t)); t++) {
            n += dump_twice("reshard", source, target, NULL, NULL);
            for (size_t m = 0; (method = name_at(MGR_OWNER_METHOD, m)); m++)
                for (size_t r = 0; (router = name_at(MGR_OWNER_ROUTER, r)); r++)
                    n += dump_twice("upcycle", source, target, method, router);
        }
    CHECK(n >= 6 * 6 * 13);
}

/* Given with every target that does not read it, each key is an error. */
static void test_every_foreign_key(void)
{
    mgr_key_list all;
    size_t n = 0;
    const char *target;
    mgr_schema_list(mgr_config_tables, &all);
    for (size_t t = 0; (target = name_at(MGR_OWNER_TARGET, t)); t++)
        for (size_t i = 0; i < all.n; i++) {
            char text[200], set[200];
            const mgr_key *const key = all.keys[i];
            mgr_config c;
            mgr_err err;
            (void)snprintf(text, sizeof text,
                           "source: {path: /in}\ntarget: {path: /out, format: %s}\n", target);
            CHECK_INT(parse(&c, text, strlen(text), &err), MGR_OK);
            if (mgr_schema_row(mgr_config_tables, &c, key->name) || !key->fallback)
                continue;
            (void)snprintf(set, sizeof set, "%s=%s", key->name,
                           key->kind == MGR_KEY_MAP ? "{}" : key->fallback);
            CHECK_INT(parse_set(&c, text, set, &err), MGR_ERR_USAGE);
            CHECK_HAS(err.msg, key->name);
            CHECK_HAS(err.msg, "' is for ");
            n++;
        }
    CHECK(n > 20);
}

static const struct {
    const char *text, *message, *hint;
} foreign[] = {
    {PATHS "mode: reshard\nupcycle:\n  seed: 1\n",
     "x.yaml:5:3: 'upcycle.seed' is for mode 'upcycle'; 'mode' is 'reshard'",
     "remove 'upcycle.seed', or set 'mode: upcycle'"},
    {PATHS "mode: reshard\nupcycle:\n  ratio: 1\n",
     "x.yaml:5:3: 'upcycle.ratio' is for mode 'upcycle'; 'mode' is 'reshard'", NULL},
    {PATHS "upcycle:\n  noise_std: 1\n",
     "x.yaml:4:3: 'upcycle.noise_std' is for method 'noise'; 'upcycle.method' is 'drop' by default",
     "remove 'upcycle.noise_std', or set 'upcycle.method: noise'"},
    {PATHS "upcycle:\n  method: naive\n  ratio: 1\n",
     "x.yaml:5:3: 'upcycle.ratio' is for method 'drop' or 'noise'; 'upcycle.method' is 'naive'",
     "remove 'upcycle.ratio', or set 'upcycle.method' to one of those"},
    {PATHS "upcycle:\n  router_std: 1\n",
     "x.yaml:4:3: 'upcycle.router_std' is for router 'normal' or 'virtual-groups'; "
     "'upcycle.router' "
     "is 'uniform' by default",
     NULL},
    {"source: {path: a}\ntarget:\n  path: b\n  format: hdf5\n  names: te\n",
     "x.yaml:5:3: 'target.names' is for target format 'huggingface' or 'moe-recipes' or 'mixtral' "
     "or 'megatron-torch' or 'megatron-dist' or 'deepspeed'; 'target.format' is 'hdf5'",
     NULL},
    {"source: {path: a, format: hdf5, iteration: 5}\ntarget: {path: b}\n",
     "x.yaml:1:33: 'source.iteration' is for source format 'megatron-dist' or 'megatron-torch' or "
     "'deepspeed'; "
     "'source.format' is 'hdf5'",
     NULL},
    {"source: {path: a}\ntarget: {path: b, names: te}\n",
     "x.yaml:2:19: 'target.names' is 'te', must be auto, per-expert or fused", NULL},
    {"source: {path: a}\ntarget: {path: b, names: fused, format: megatron-dist}\n",
     "x.yaml:2:19: 'target.names' is 'fused', must be auto, te or local", NULL},
    {"source: {path: a}\ntarget: {path: b, format: mixtrall}\n",
     "x.yaml:2:19: 'target.format' is 'mixtrall'; known are: huggingface, moe-recipes, mixtral, "
     "megatron-torch, megatron-dist, hdf5, deepspeed",
     NULL},
    {"source: {path: a, format: hf}\ntarget: {path: b}\n",
     "x.yaml:1:19: 'source.format' is 'hf'; known are: auto, megatron-dist, megatron-torch, hdf5, "
     "torch-dcp, deepspeed, "
     "huggingface, moe-recipes, mixtral",
     NULL},
    {PATHS "upcycle: {method: dropp}\n",
     "x.yaml:3:11: 'upcycle.method' is 'dropp'; known are: drop, naive, noise, branch-train-mix, "
     "from-scratch, concatenate",
     NULL},
    {PATHS "upcycle: {router: x}\n",
     "x.yaml:3:11: 'upcycle.router' is 'x'; known are: uniform, uniform01, uniform01-centred, "
     "normal, virtual-groups, zeros, file, source",
     NULL},
};

static void test_foreign(void)
{
    for (size_t i = 0; i < sizeof foreign / sizeof foreign[0]; i++) {
        mgr_config c;
        mgr_err err;
        CHECK_INT(parse(&c, foreign[i].text, strlen(foreign[i].text), &err), MGR_ERR_CONFIG);
        CHECK_TEXT(err.msg, foreign[i].message);
        if (foreign[i].hint)
            CHECK_TEXT(err.hint, foreign[i].hint);
    }
    mgr_config c;
    mgr_err err;
    CHECK_INT(parse_set(&c, PATHS, "target.compression=deflate", &err), MGR_ERR_USAGE);
    CHECK_HAS(err.msg,
              "--set target.compression: 'target.compression' is for target format 'hdf5'");
}

/* 'auto' takes any source's keys, and those of what was found are asked for again. */
static void test_settle(void)
{
    mgr_config c;
    mgr_err err;
    CHECK_INT(parse_set(&c, PATHS, "source.iteration=5", &err), MGR_OK);
    (void)snprintf(c.source.format, sizeof c.source.format, "huggingface");
    CHECK_INT(mgr_config_settle(&c, mgr_config_tables, &err), MGR_ERR_USAGE);
    CHECK_HAS(err.msg, "'source.iteration' is for source format 'megatron-dist' or "
                       "'megatron-torch' or 'deepspeed'; 'source.format' is 'huggingface'");
    err = (mgr_err)MGR_ERR_INIT;
    (void)snprintf(c.source.format, sizeof c.source.format, "megatron-torch");
    CHECK_INT(mgr_config_settle(&c, mgr_config_tables, &err), MGR_OK);
    CHECK_TEXT(c.source.iteration, "5");
    CHECK_TEXT(c.source.format, "megatron-torch");
}

/* A schema of its own: maps, and a default that the owner gives. */
static const mgr_key map_rows[] = {
    MGR_ROW_REQUIRED_PATH("source.path", source.path, "x"),
    MGR_ROW_CHOICE("mode", mode, "upcycle", "upcycle|reshard", "x"),
    MGR_ROW_MAP("target.config", target.config, "x"),
};
static const mgr_key upcycle_rows[] = {
    MGR_ROW_CHOICE("target.dtype", target.dtype, "bfloat16", "source|bfloat16", "x"),
};
static const mgr_key reshard_rows[] = {
    MGR_ROW_CHOICE("target.dtype", target.dtype, "source", "source|bfloat16", "x"),
};

static const mgr_key_table *small_schema(size_t idx)
{
    static const mgr_key_table tables[] = {
        MGR_KEY_TABLE(MGR_OWNER_ALL, NULL, map_rows),
        MGR_KEY_TABLE(MGR_OWNER_MODE, "upcycle", upcycle_rows),
        MGR_KEY_TABLE(MGR_OWNER_MODE, "reshard", reshard_rows),
        MGR_NO_KEYS(MGR_OWNER_TARGET, ""),
    };
    return idx < sizeof tables / sizeof tables[0] ? &tables[idx] : NULL;
}

static const struct {
    const char *yaml, *json; /* or the message */
} maps[] = {
    {"{}", ""},
    {"{a: 1, b: -2.50, c: x y, d: 'true', e: true, f: False, g: ~, h: null}",
     "{\"a\": 1, \"b\": -2.5, \"c\": \"x y\", \"d\": \"true\", \"e\": true, \"f\": false, \"g\": "
     "null, "
     "\"h\": null}"},
    {"{eos_token_id: [1, 2], rope_scaling: {type: yarn, factor: 1e1}, e: []}",
     "{\"eos_token_id\": [1, 2], \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 10.0}, \"e\": "
     "[]}"},
    {"{a: \"q\\\"\\u000a\"}", "{\"a\": \"q\\\"\\u000A\"}"},
    {"{a: 0x10, b: .5, c: +1, d: 1e-5}",
     "{\"a\": \"0x10\", \"b\": 0.5, \"c\": 1.0, \"d\": 1.0e-05}"},
    {"5", "x.yaml:3:3: 'target.config' is a single value, must be a map: {key: value}"},
    {"[1]", "x.yaml:3:3: 'target.config' is a sequence, must be a map: {key: value}"},
    {"{a: 1, a: 2}", "x.yaml:3:18: 'target.config': a key is there twice"},
    {"{[a]: 2}", "x.yaml:3:12: 'target.config': a key must be a word"},
    {"{a: 1e999}", "x.yaml:3:15: 'target.config': a number is out of range"},
    {"{a: 99999999999999999999}", "x.yaml:3:15: 'target.config': a number is out of range"},
    {"{a: [[[[1]]]]}", "x.yaml:3:18: 'target.config': lists and maps are nested too deeply"},
    {"{a: &b 1}", "x.yaml:3:15: anchor '&b' is not allowed in a configuration"},
};

static void check_map(const char *yaml, const char *json)
{
    char text[300];
    mgr_config c, again;
    mgr_err err = MGR_ERR_INIT;
    mgr_buf dump = {0};
    (void)snprintf(text, sizeof text, "source: {path: a}\ntarget:\n  config: %s\n", yaml);
    const int rc = mgr_config_parse(&c, small_schema, "x.yaml", text, strlen(text), NULL, 0, &err);
    CHECK_TEXT(rc == MGR_OK ? c.target.config : err.msg, json);
    if (rc != MGR_OK)
        return;
    CHECK_INT(mgr_config_dump(&c, small_schema, &dump, &err), MGR_OK);
    CHECK_INT(mgr_config_parse(&again, small_schema, "d", dump.data, dump.len, NULL, 0, &err), 0);
    CHECK_TEXT(err.msg, "");
    CHECK_TEXT(again.target.config, c.target.config);
    mgr_buf_clear(&dump);
    (void)snprintf(text, sizeof text, "target.config=%s", yaml);
    const char *const sets[] = {text, "source.path=a", "mode=reshard"};
    CHECK_INT(mgr_config_parse(&c, small_schema, "x", "{}", 2, sets, 3, &err), MGR_OK);
    CHECK_TEXT(c.target.config, json);
    CHECK_TEXT(c.target.dtype, "source"); /* what this mode has by default */
    CHECK_TEXT(again.target.dtype, "bfloat16");
}

static void test_maps(void)
{
    for (size_t i = 0; i < sizeof maps / sizeof maps[0]; i++)
        check_map(maps[i].yaml, maps[i].json);
}

/* A failed allocation at any point is reported and leaks nothing. */
static void test_memory(void)
{
    mgr_config c;
    mgr_err err;
    CHECK_INT(parse(&c, full, sizeof full - 1, &err), MGR_OK);
    for (uint64_t k = 1;; k++) {
        mgr_buf text = {0};
        err = (mgr_err)MGR_ERR_INIT;
        mgr_alloc_fail_at(k);
        const int rc = mgr_config_dump(&c, mgr_config_tables, &text, &err);
        mgr_alloc_fail_at(0);
        mgr_buf_clear(&text);
        if (rc == MGR_OK) {
            CHECK(k > 1);
            break;
        }
        CHECK_INT(rc, MGR_ERR_NOMEM);
    }
}

int main(void)
{
    test_schema();
    test_defaults();
    test_full();
    test_refused();
    test_large();
    test_sets();
    test_fail();
    test_dump();
    test_every_choice();
    test_every_foreign_key();
    test_foreign();
    test_settle();
    test_maps();
    test_memory();
    return CHECK_DONE();
}
