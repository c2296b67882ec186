#include "cfg/yaml_events.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cfg/utf8.h"
#include "core/str.h"

int mgr_yaml_fail(const mgr_yaml *yaml, yaml_mark_t mark, mgr_err *err, const char *fmt, ...)
{
    char what[400];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    return mgr_fail(err, MGR_ERR_CONFIG, "%s:%zu:%zu: %s", yaml->file, mark.line + 1,
                    mark.column + 1, what);
}

/* Step over one code point; the line breaks are those of YAML 1.1, so that places agree with the
 * marks of libyaml. */
static void advance(yaml_mark_t *mark, const char *text, size_t len, size_t n, uint32_t code)
{
    const bool lone_return = code == '\r' && !(mark->index + 1 < len && text[n] == '\n');
    const bool line =
        code == '\n' || lone_return || code == 0x85 || code == 0x2028 || code == 0x2029;
    mark->index += n;
    mark->line += line;
    mark->column = line ? 0 : mark->column + 1;
}

/* libyaml ends a text at a NUL byte without a word and has no line for a byte that it cannot
 * decode, so bytes are checked here. */
static int check_bytes(const mgr_yaml *yaml, const char *text, size_t len, mgr_err *err)
{
    yaml_mark_t mark = {0, 0, 0};
    if (len > MGR_YAML_MAX_BYTES)
        return mgr_fail(err, MGR_ERR_CONFIG, "%s: the file has %zu bytes, at most %zu are read",
                        yaml->file, len, MGR_YAML_MAX_BYTES);
    while (mark.index < len) {
        uint32_t code = 0;
        const char *p = text + mark.index;
        const size_t n = mgr_utf8_next(p, len - mark.index, &code);
        if (n == 0)
            return mgr_yaml_fail(yaml, mark, err, "byte 0x%02x is not valid UTF-8",
                                 (unsigned)(unsigned char)*p);
        if (code == 0)
            return mgr_yaml_fail(yaml, mark, err, "NUL byte in the text");
        const bool control = (code < 0x20 && code != '\t' && code != '\n' && code != '\r') ||
                             (code >= 0x7f && code <= 0x9f && code != 0x85) || code == 0xfffe ||
                             code == 0xffff;
        if (control)
            return mgr_yaml_fail(yaml, mark, err, "control character U+%04X in the text",
                                 (unsigned)code);
        advance(&mark, p, len, n, code);
    }
    return MGR_OK;
}

int mgr_yaml_open(mgr_yaml *yaml, const char *file, const char *text, size_t len, mgr_err *err)
{
    static const char bom[] = "\xef\xbb\xbf";
    memset(yaml, 0, sizeof *yaml);
    yaml->file = file;
    if (len >= 3 && memcmp(text, bom, 3) == 0) {
        text += 3;
        len -= 3;
    }
    MGR_TRY(check_bytes(yaml, text, len, err));
    if (!yaml_parser_initialize(&yaml->parser))
        return mgr_fail(err, MGR_ERR_NOMEM, "%s: no memory for the YAML parser", file);
    yaml_parser_set_encoding(&yaml->parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&yaml->parser, (const unsigned char *)text, len);
    return MGR_OK;
}

void mgr_yaml_close(mgr_yaml *yaml)
{
    yaml_event_delete(&yaml->event);
    yaml_parser_delete(&yaml->parser);
}

/* What libyaml says, and what it means to who wrote it. */
static const char *plain_words(const char *problem)
{
    static const struct {
        const char *theirs, *ours;
    } words[] = {
        {"found a tab character", "a tab indents this line, YAML takes blanks only"},
        {"mapping values are not allowed",
         "no key is expected here: is this line, or the one before, indented too far? a text with "
         "': ' in it needs quotes"},
        {"did not find expected key",
         "this line is not indented as the keys before it, or a quote or bracket is not closed"},
        {"could not find expected ':'", "the line before is no 'key: value'"},
        {"found unexpected end of stream", "a quote is not closed"},
    };
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (strncmp(problem, words[i].theirs, strlen(words[i].theirs)) == 0)
            return words[i].ours;
    return problem;
}

/* A tab where a token should begin: libyaml speaks of a character that cannot start one. */
static bool at_tab(const yaml_parser_t *p)
{
    return p->buffer.pointer < p->buffer.last && *p->buffer.pointer == '\t';
}

static int fail_syntax(const mgr_yaml *yaml, mgr_err *err)
{
    const yaml_parser_t *p = &yaml->parser;
    const char *problem = p->problem ? p->problem : "cannot be read";
    if (p->error == YAML_MEMORY_ERROR)
        return mgr_fail(err, MGR_ERR_NOMEM, "%s: no memory for the YAML parser", yaml->file);
    if (p->error == YAML_READER_ERROR)
        return mgr_fail(err, MGR_ERR_CONFIG, "%s: %s at byte %zu", yaml->file, problem,
                        p->problem_offset);
    if (at_tab(p))
        problem = "found a tab character";
    if (plain_words(problem) != problem || !p->context)
        return mgr_yaml_fail(yaml, p->problem_mark, err, "not valid YAML: %s",
                             plain_words(problem));
    return mgr_yaml_fail(yaml, p->problem_mark, err, "not valid YAML: %s (%s at line %zu)", problem,
                         p->context, p->context_mark.line + 1);
}

/* Anchor and tag of the current event, whatever its type. */
static void decorations(const yaml_event_t *event, const yaml_char_t **anchor,
                        const yaml_char_t **tag)
{
    *anchor = NULL;
    *tag = NULL;
    if (event->type == YAML_SCALAR_EVENT) {
        *anchor = event->data.scalar.anchor;
        *tag = event->data.scalar.tag;
    } else if (event->type == YAML_SEQUENCE_START_EVENT) {
        *anchor = event->data.sequence_start.anchor;
        *tag = event->data.sequence_start.tag;
    } else if (event->type == YAML_MAPPING_START_EVENT) {
        *anchor = event->data.mapping_start.anchor;
        *tag = event->data.mapping_start.tag;
    }
}

static int refuse_name(const mgr_yaml *yaml, const char *what, const char *sign,
                       const yaml_char_t *name, mgr_err *err)
{
    char shown[64];
    const char *text = (const char *)name;
    return mgr_yaml_fail(yaml, yaml->event.start_mark, err,
                         "%s '%s%s' is not allowed in a configuration", what, sign,
                         mgr_printable(text, strlen(text), shown, sizeof shown));
}

static int check_event(const mgr_yaml *yaml, mgr_err *err)
{
    const yaml_event_t *event = &yaml->event;
    const yaml_char_t *anchor = NULL, *tag = NULL;
    if (event->type == YAML_ALIAS_EVENT)
        return refuse_name(yaml, "alias", "*", event->data.alias.anchor, err);
    if (event->type == YAML_DOCUMENT_START_EVENT &&
        event->data.document_start.tag_directives.start !=
            event->data.document_start.tag_directives.end)
        return mgr_yaml_fail(yaml, event->start_mark, err,
                             "directive '%%TAG' is not allowed in a configuration");
    decorations(event, &anchor, &tag);
    if (anchor)
        return refuse_name(yaml, "anchor", "&", anchor, err);
    if (tag)
        return refuse_name(yaml, "tag", "", tag, err);
    return MGR_OK;
}

int mgr_yaml_next(mgr_yaml *yaml, mgr_err *err)
{
    yaml_event_delete(&yaml->event);
    if (!yaml_parser_parse(&yaml->parser, &yaml->event))
        return fail_syntax(yaml, err);
    return check_event(yaml, err);
}

const char *mgr_yaml_event_name(const mgr_yaml *yaml)
{
    switch (yaml->event.type) {
    case YAML_SCALAR_EVENT:
        return "a single value";
    case YAML_SEQUENCE_START_EVENT:
        return "a sequence";
    case YAML_MAPPING_START_EVENT:
        return "a mapping";
    default:
        return "nothing";
    }
}
