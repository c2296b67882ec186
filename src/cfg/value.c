/* Typed values: strict parsing, range checks, exact printing. The C locale is assumed: no program
 * calls setlocale, and libmgr puts its caller's aside (lib/locale.h). */
#include "cfg/value.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cfg/utf8.h"

/* One conversion: what is written where, and where to complain. */
typedef struct task {
    void *field;
    const mgr_key *key;
    const mgr_scalar *scalar;
    char *why;
    size_t size;
} task;

/* "'<key>' is <quote><text><quote><what>"; always false, for `return refuse(...)`. */
MGR_PRINTF(3, 4)
static bool refuse(const task *t, const char *quote, const char *what, ...)
{
    char shown[80], tail[256];
    va_list args;
    va_start(args, what);
    (void)vsnprintf(tail, sizeof tail, what, args);
    va_end(args);
    mgr_printable(t->scalar->text, t->scalar->len, shown, sizeof shown);
    (void)snprintf(t->why, t->size, "'%s' is %s%s%s%s%s", t->key->name, quote, shown,
                   t->scalar->len >= sizeof shown ? "..." : "", quote, tail);
    return false;
}

static const char *exact_bytes(uint64_t bytes, char *out, size_t size)
{
    static const struct {
        uint64_t size;
        const char *name;
    } units[] = {
        {UINT64_C(1) << 40, "TiB"},   {UINT64_C(1000000000000), "TB"}, {UINT64_C(1) << 30, "GiB"},
        {UINT64_C(1000000000), "GB"}, {UINT64_C(1) << 20, "MiB"},      {UINT64_C(1000000), "MB"},
        {UINT64_C(1) << 10, "KiB"},
    };
    for (size_t i = 0; bytes && i < sizeof units / sizeof units[0]; i++) {
        if (bytes % units[i].size == 0) {
            (void)snprintf(out, size, "%" PRIu64 "%s", bytes / units[i].size, units[i].name);
            return out;
        }
    }
    (void)snprintf(out, size, "%" PRIu64, bytes);
    return out;
}

/* The shortest decimal that reads back to the same double, always with a point: YAML 1.1 readers
 * take "1e-05" for a text. */
const char *mgr_exact_real(double value, char *out, size_t size)
{
    char digits[MGR_REAL_BYTES];
    const size_t mantissa = strcspn(mgr_shortest_real(value, digits), "e");
    const char *point = memchr(digits, '.', mantissa) ? "" : ".0";
    (void)snprintf(out, size, "%.*s%s%s", (int)mantissa, digits, point, digits + mantissa);
    return out;
}

/* One end of a key's range, in the key's own notation. */
static const char *limit_text(const mgr_key *key, double limit, char *out, size_t size)
{
    if (key->kind == MGR_KEY_BYTES)
        return exact_bytes((uint64_t)limit, out, size);
    if (key->kind == MGR_KEY_UINT && limit >= 0x1p64)
        (void)snprintf(out, size, "%" PRIu64, UINT64_MAX);
    else
        (void)snprintf(out, size, "%.16g", limit);
    return out;
}

static bool refuse_range(const task *t)
{
    char min[40], max[40];
    return refuse(t, "", ", must be within %s .. %s",
                  limit_text(t->key, t->key->min, min, sizeof min),
                  limit_text(t->key, t->key->max, max, sizeof max));
}

/* Numbers and booleans are written plainly: a quoted "8" is a text. */
static bool refuse_quoted(const task *t, const char *type)
{
    return refuse(t, "'", " in quotes, must be %s without quotes", type);
}

static size_t count_digits(const char *text)
{
    return strspn(text, "0123456789");
}

/* -?(0|[1-9][0-9]*): no plus, no leading zeros (YAML 1.1 reads 010 as 8), no other base. */
bool mgr_scalar_is_whole(const mgr_scalar *scalar)
{
    const char *digits = scalar->text + (scalar->text[0] == '-');
    const size_t n = count_digits(digits);
    return n > 0 && digits + n == scalar->text + scalar->len && (n == 1 || digits[0] != '0');
}

/* [-+]?([0-9]+(.[0-9]*)?|.[0-9]+)([eE][-+]?[0-9]+)? */
bool mgr_scalar_is_real(const mgr_scalar *scalar)
{
    const char *p = scalar->text;
    p += *p == '-' || *p == '+';
    const size_t whole = count_digits(p);
    p += whole;
    size_t fraction = 0;
    if (*p == '.') {
        fraction = count_digits(p + 1);
        p += 1 + fraction;
    }
    if (whole + fraction == 0)
        return false;
    if (*p == 'e' || *p == 'E') {
        p++;
        p += *p == '-' || *p == '+';
        if (count_digits(p) == 0)
            return false;
        p += count_digits(p);
    }
    return p == scalar->text + scalar->len;
}

static bool set_uint(const task *t)
{
    if (!t->scalar->plain)
        return refuse_quoted(t, "a whole number");
    if (!mgr_scalar_is_whole(t->scalar))
        return refuse(t, "'", ", must be a whole number");
    errno = 0;
    const uint64_t value = strtoull(t->scalar->text, NULL, 10);
    const bool fits = errno == 0 && t->scalar->text[0] != '-';
    /* the limits below 2^64 are whole numbers that a double holds exactly */
    if (!fits || value < (uint64_t)t->key->min ||
        (t->key->max < 0x1p64 && value > (uint64_t)t->key->max))
        return refuse_range(t);
    memcpy(t->field, &value, sizeof value);
    return true;
}

static bool set_int(const task *t)
{
    if (!t->scalar->plain)
        return refuse_quoted(t, "a whole number");
    if (!mgr_scalar_is_whole(t->scalar))
        return refuse(t, "'", ", must be a whole number");
    errno = 0;
    const int64_t value = strtoll(t->scalar->text, NULL, 10);
    if (errno != 0 || value < (int64_t)t->key->min || value > (int64_t)t->key->max)
        return refuse_range(t);
    memcpy(t->field, &value, sizeof value);
    return true;
}

static bool set_real(const task *t)
{
    if (!t->scalar->plain)
        return refuse_quoted(t, "a number");
    if (!mgr_scalar_is_real(t->scalar))
        return refuse(t, "'", ", must be a number");
    const double value = strtod(t->scalar->text, NULL) + 0.0; /* -0 becomes 0 */
    if (!(value >= t->key->min && value <= t->key->max))
        return refuse_range(t);
    memcpy(t->field, &value, sizeof value);
    return true;
}

bool mgr_scalar_is_bool(const mgr_scalar *scalar, bool *value)
{
    static const char *const words[2][3] = {{"false", "False", "FALSE"}, {"true", "True", "TRUE"}};
    for (int i = 0; scalar->plain && i < 6; i++)
        if (strcmp(scalar->text, words[i / 3][i % 3]) == 0) {
            *value = i / 3;
            return true;
        }
    return false;
}

static bool set_bool(const task *t)
{
    if (!t->scalar->plain)
        return refuse_quoted(t, "true or false");
    bool value = false;
    if (!mgr_scalar_is_bool(t->scalar, &value))
        return refuse(t, "'", ", must be true or false");
    memcpy(t->field, &value, sizeof value);
    return true;
}

/* "2G": whether that is 2^30 or 10^9 differs from program to program, so we ask. */
static bool refuse_unit(const task *t, size_t digits)
{
    const char unit = (char)toupper((unsigned char)t->scalar->text[digits]);
    return refuse(t, "'", ", which may mean either: write %.*s%ciB (binary) or %.*s%cB (decimal)",
                  (int)digits, t->scalar->text, unit, (int)digits, t->scalar->text, unit);
}

static bool set_bytes(const task *t)
{
    uint64_t value = 0;
    const size_t digits = count_digits(t->scalar->text);
    const bool one_letter = digits > 0 && digits < 20 && t->scalar->len == digits + 1;
    if (one_letter && strchr("kKmMgGtT", t->scalar->text[digits]))
        return refuse_unit(t, digits);
    if (!mgr_parse_bytes(t->scalar->text, &value))
        return refuse(t, "'", ", must be a size in bytes such as 512MiB or 5GB");
    if (value < (uint64_t)t->key->min || value > (uint64_t)t->key->max)
        return refuse_range(t);
    memcpy(t->field, &value, sizeof value);
    return true;
}

static bool set_text(const task *t)
{
    if (t->key->required && t->scalar->len == 0) {
        (void)snprintf(t->why, t->size, "'%s' is empty", t->key->name);
        return false;
    }
    if (t->scalar->len >= t->key->size) {
        (void)snprintf(t->why, t->size, "'%s' is %zu bytes long, at most %zu fit", t->key->name,
                       t->scalar->len, t->key->size - 1);
        return false;
    }
    memset(t->field, 0, t->key->size);
    memcpy(t->field, t->scalar->text, t->scalar->len);
    return true;
}

/* Is the text one of "a|b|N", where N stands for any number? */
static bool is_choice(const char *choices, const mgr_scalar *scalar)
{
    for (const char *c = choices;; c++) {
        const size_t len = strcspn(c, "|");
        if (len == 1 && *c == 'N') {
            const size_t n = count_digits(scalar->text);
            if (n == scalar->len && n > 0 && n < 20)
                return true;
        } else if (len == scalar->len && memcmp(c, scalar->text, len) == 0) {
            return true;
        }
        c += len;
        if (*c == '\0')
            return false;
    }
}

/* "a|b|N" as "a, b or a number". */
static const char *choices_text(const char *choices, char *out, size_t size)
{
    size_t len = 0;
    for (const char *c = choices; len < size; c++) {
        const size_t n = strcspn(c, "|");
        const char *lead = c == choices ? "" : c[n] ? ", " : " or ";
        const bool number = n == 1 && *c == 'N';
        const int added =
            snprintf(out + len, size - len, "%s%.*s", lead,
                     number ? (int)strlen("a number") : (int)n, number ? "a number" : c);
        len += added > 0 ? (size_t)added : 0;
        c += n;
        if (*c == '\0')
            break;
    }
    return out;
}

/* Other spellings of element types, as torch and its users have them. */
static const struct {
    const char *alias, *word;
} aliases[] = {
    {"bf16", "bfloat16"},         {"torch.bfloat16", "bfloat16"}, {"fp16", "float16"},
    {"half", "float16"},          {"torch.float16", "float16"},   {"fp32", "float32"},
    {"torch.float32", "float32"},
};

/* Which choices there are may depend on keys that come later: mgr_value_check asks. */
static bool set_choice(const task *t)
{
    task exact = *t;
    mgr_scalar word = *t->scalar;
    for (size_t i = 0; i < sizeof aliases / sizeof aliases[0]; i++)
        if (strcmp(word.text, aliases[i].alias) == 0 && strstr(t->key->choices, aliases[i].word))
            word = (mgr_scalar){aliases[i].word, strlen(aliases[i].word), true};
    exact.scalar = &word;
    return set_text(&exact);
}

bool mgr_value_check(const mgr_config *config, const mgr_key *key, char *why, size_t size)
{
    char words[160];
    const char *const field = (const char *)config + key->offset;
    if (key->kind != MGR_KEY_CHOICE)
        return true;
    const mgr_scalar scalar = {field, strlen(field), true};
    const task t = {NULL, key, &scalar, why, size};
    return is_choice(key->choices, &scalar) ||
           refuse(&t, "'", ", must be %s", choices_text(key->choices, words, sizeof words));
}

/* Nothing expands "~" and "$NAME" here, and a folder of that name is never what was meant. */
static bool set_path(const task *t)
{
    const char *const text = t->scalar->text;
    const char *dollar = strchr(text, '$');
    while (dollar && !isalpha((unsigned char)dollar[1]) && dollar[1] != '_' && dollar[1] != '{')
        dollar = strchr(dollar + 1, '$');
    if (text[0] == '~')
        return refuse(t, "'", ", but '~' is not expanded: write the home folder in full");
    if (dollar)
        return refuse(t, "'",
                      ", but variables are not expanded: write the path in full, or use "
                      "--set %s=... and let the shell do it",
                      t->key->name);
    return set_text(t);
}

bool mgr_scalar_is_null(const mgr_scalar *scalar)
{
    static const char *const words[] = {"~", "null", "Null", "NULL"};
    for (size_t i = 0; scalar->plain && i < sizeof words / sizeof words[0]; i++)
        if (strcmp(scalar->text, words[i]) == 0)
            return true;
    return false;
}

/* NUL bytes come from the escape "\0", other bytes from --set. */
static const char *bad_text(const mgr_scalar *scalar)
{
    if (strlen(scalar->text) != scalar->len)
        return "contains a NUL byte";
    uint32_t code = 0;
    for (size_t at = 0, n = 0; at < scalar->len; at += n) {
        n = mgr_utf8_next(scalar->text + at, scalar->len - at, &code);
        if (n == 0)
            return "is not valid UTF-8";
    }
    return mgr_scalar_is_null(scalar) ? "is null, leave it out for its default" : NULL;
}

bool mgr_value_set(mgr_config *config, const mgr_key *key, const mgr_scalar *scalar, char *why,
                   size_t size)
{
    static bool (*const setters[])(const task *) = {
        [MGR_KEY_TEXT] = set_text, [MGR_KEY_PATH] = set_path,   [MGR_KEY_CHOICE] = set_choice,
        [MGR_KEY_UINT] = set_uint, [MGR_KEY_INT] = set_int,     [MGR_KEY_REAL] = set_real,
        [MGR_KEY_BOOL] = set_bool, [MGR_KEY_BYTES] = set_bytes, [MGR_KEY_MAP] = set_text,
    };
    const char *bad = bad_text(scalar);
    if (bad) {
        (void)snprintf(why, size, "'%s' %s", key->name, bad);
        return false;
    }
    const task t = {(char *)config + key->offset, key, scalar, why, size};
    return setters[key->kind](&t);
}

int mgr_value_default(mgr_config *config, const mgr_key *key, mgr_err *err)
{
    char why[320];
    const mgr_scalar scalar = {key->fallback, strlen(key->fallback), true};
    if (!mgr_value_set(config, key, &scalar, why, sizeof why))
        return mgr_fail(err, MGR_ERR_INTERNAL, "default of a configuration key: %s", why);
    return MGR_OK;
}

/* Texts that every YAML reader takes for this very text without quotes: they begin like a path or
 * a name, have no special characters, and are no word with a meaning. */
static bool is_safe_plain(const char *text)
{
    static const char *const words[] = {"null", "true", "false", "yes", "no", "on",
                                        "off",  "y",    "n",     "inf", "nan"};
    static const char safe[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                               "0123456789_/.+-@=";
    if (!isalpha((unsigned char)text[0]) && text[0] != '/')
        return false;
    if (text[strspn(text, safe)] != '\0')
        return false;
    char lower[8] = {0};
    for (size_t i = 0; i < sizeof lower - 1 && text[i]; i++)
        lower[i] = (char)tolower((unsigned char)text[i]);
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (strcmp(lower, words[i]) == 0 && strlen(text) < sizeof lower)
            return false;
    return true;
}

/* Code points that a YAML reader folds, refuses or does not show. */
static bool needs_escape(uint32_t code)
{
    return code < 0x20 || (code >= 0x7f && code <= 0x9f) || code == 0x2028 || code == 0x2029 ||
           code == 0xfeff || code == 0xfffe || code == 0xffff;
}

int mgr_dump_quoted(const char *text, mgr_buf *out, mgr_err *err)
{
    const size_t len = strlen(text);
    uint32_t code = 0;
    MGR_TRY(mgr_buf_text(out, "\"", err));
    for (size_t at = 0, n = 0; at < len; at += n) {
        n = mgr_utf8_next(text + at, len - at, &code);
        if (n == 0)
            return mgr_fail(err, MGR_ERR_INTERNAL, "configuration text is not valid UTF-8");
        if (code == '"' || code == '\\')
            MGR_TRY(mgr_buf_fmt(out, err, "\\%c", (int)code));
        else if (needs_escape(code))
            MGR_TRY(mgr_buf_fmt(out, err, "\\u%04" PRIX32, code));
        else
            MGR_TRY(mgr_buf_add(out, text + at, n, err));
    }
    return mgr_buf_text(out, "\"", err);
}

int mgr_value_dump(const mgr_config *config, const mgr_key *key, mgr_buf *out, mgr_err *err)
{
    const char *field = (const char *)config + key->offset;
    char text[64];
    uint64_t u = 0;
    int64_t i = 0;
    double r = 0;
    bool b = false;
    switch (key->kind) {
    case MGR_KEY_TEXT:
    case MGR_KEY_PATH:
        return is_safe_plain(field) ? mgr_buf_text(out, field, err)
                                    : mgr_dump_quoted(field, out, err);
    case MGR_KEY_CHOICE: /* one of our own words, or a number */
        return mgr_buf_text(out, field, err);
    case MGR_KEY_MAP: /* JSON is YAML */
        return mgr_buf_text(out, field[0] ? field : "{}", err);
    case MGR_KEY_UINT:
        memcpy(&u, field, sizeof u);
        return mgr_buf_fmt(out, err, "%" PRIu64, u);
    case MGR_KEY_INT:
        memcpy(&i, field, sizeof i);
        return mgr_buf_fmt(out, err, "%" PRId64, i);
    case MGR_KEY_REAL:
        memcpy(&r, field, sizeof r);
        return mgr_buf_text(out, mgr_exact_real(r, text, sizeof text), err);
    case MGR_KEY_BOOL:
        memcpy(&b, field, sizeof b);
        return mgr_buf_text(out, b ? "true" : "false", err);
    case MGR_KEY_BYTES:
        memcpy(&u, field, sizeof u);
        return mgr_buf_text(out, exact_bytes(u, text, sizeof text), err);
    }
    return mgr_fail(err, MGR_ERR_INTERNAL, "key '%s' has no kind", key->name);
}
