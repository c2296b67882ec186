/* Completion scripts, made from a program's options and keys, so that they cannot fall behind. */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"

static bool takes_folder(const mgr_option *o)
{
    return o->argument && strcmp(o->argument, "DIR") == 0;
}

static bool takes_key(const mgr_option *o)
{
    return o->argument && strncmp(o->argument, "KEY", 3) == 0;
}

/* The words that an option takes; NULL where it takes none or any. */
static const char *words_of(const mgr_program *p, const mgr_option *o)
{
    for (const mgr_words_of *w = p->words; w && w->option; w++)
        if (strcmp(w->option, o->name) == 0)
            return w->words;
    return NULL;
}

static void put_keys(const mgr_program *p, const char *end)
{
    const char *key;
    for (size_t i = 0; p->key_at && (key = p->key_at(i)); i++)
        printf("%s%s%s", i ? " " : "", key, end);
}

/* "_mgr_upcycle": a shell's functions have no dashes. */
static void put_function(const mgr_program *p)
{
    putchar('_');
    for (const char *c = p->name; *c; c++)
        putchar(*c == '-' ? '_' : *c);
}

/* A description in single quotes, with what the shell's own grammar takes for its own. */
static void put_quoted(const char *text, const char *special)
{
    for (; *text; text++) {
        if (*text == '\'')
            printf("'\\'");
        else if (strchr(special, *text))
            putchar('\\');
        putchar(*text);
    }
}

/* ---- bash ---- */

static void bash_value(const mgr_program *p, const mgr_option *o)
{
    const char *const words = words_of(p, o);
    printf("        --%s", o->name);
    if (o->letter)
        printf(" | -%c", o->letter);
    printf(")\n");
    if (takes_key(o)) {
        const bool sets = strchr(o->argument, '=') != NULL;
        printf("%s            mapfile -t COMPREPLY < <(compgen -W \"",
               sets ? "            compopt -o nospace 2>/dev/null\n" : "");
        put_keys(p, sets ? "=" : "");
        printf("\" -- \"$current\")\n");
    } else if (words) {
        printf("            mapfile -t COMPREPLY < <(compgen -W \"%s\" -- \"$current\")\n", words);
    } else if (takes_folder(o)) {
        printf("            compopt -o filenames 2>/dev/null\n"
               "            mapfile -t COMPREPLY < <(compgen -d -- \"$current\")\n");
    }
    printf("            return\n            ;;\n");
}

static void print_bash(const mgr_program *p)
{
    printf("# Completion of %s for bash, made by %s --completion bash.\n", p->name, p->name);
    printf("# shellcheck shell=bash\n");
    put_function(p);
    printf("() {\n    local current=${2-} previous=${3-}\n    COMPREPLY=()\n"
           "    case $previous in\n        --completion)\n"
           "            mapfile -t COMPREPLY < <(compgen -W \"bash zsh fish\" -- \"$current\")\n"
           "            return\n            ;;\n");
    for (size_t i = 0; i < p->n_options; i++)
        if (p->options[i].argument)
            bash_value(p, &p->options[i]);
    printf("    esac\n    if [[ $current == -* ]]; then\n"
           "        mapfile -t COMPREPLY < <(compgen -W \"");
    for (size_t i = 0; i < p->n_options; i++)
        printf("--%s ", p->options[i].name);
    printf(
        "--completion --help --version\" -- \"$current\")\n    else\n"
        "        compopt -o filenames 2>/dev/null\n"
        "        mapfile -t COMPREPLY < <(compgen -f -- \"$current\")\n    fi\n}\n\ncomplete -F ");
    put_function(p);
    printf(" %s\n", p->name);
}

/* ---- zsh ---- */

static void zsh_option(const mgr_program *p, const mgr_option *o)
{
    const char *const words = words_of(p, o);
    const bool sets = takes_key(o) && strchr(o->argument, '=');
    if (o->letter)
        printf(" \\\n    %s{-%c,--%s}'[", sets ? "'*'" : "", o->letter, o->name);
    else
        printf(" \\\n    '--%s[", o->name);
    put_quoted(o->help, "[]:\\");
    printf("]");
    if (o->argument)
        printf(":%s:", o->argument);
    if (takes_key(o)) {
        printf("(");
        put_keys(p, sets ? "=" : "");
        printf(")");
    } else if (words) {
        printf("(%s)", words);
    } else if (takes_folder(o)) {
        printf("_files -/");
    }
    printf("'");
}

static void print_zsh(const mgr_program *p)
{
    printf("#compdef %s\n# Made by %s --completion zsh.\n_arguments", p->name, p->name);
    for (size_t i = 0; i < p->n_options; i++)
        zsh_option(p, &p->options[i]);
    printf(" \\\n    '--completion[print a completion script]:SHELL:(bash zsh fish)'"
           " \\\n    '--help[print this and exit]' \\\n    '--version[print the version and exit]'"
           " \\\n    '*:file:_files'\n");
}

/* ---- fish ---- */

static void fish_option(const mgr_program *p, const mgr_option *o)
{
    const char *const words = words_of(p, o);
    printf("complete -c %s", p->name);
    if (o->letter)
        printf(" -s %c", o->letter);
    printf(" -l %s -d '", o->name);
    for (const char *c = o->help; *c; c++)
        printf(strchr("'\\", *c) ? "\\%c" : "%c", *c);
    printf("'");
    if (takes_key(o)) {
        printf(" -x -a '");
        put_keys(p, strchr(o->argument, '=') ? "=" : "");
        printf("'");
    } else if (words) {
        printf(" -x -a '%s'", words);
    } else if (takes_folder(o)) {
        printf(" -x -a '(__fish_complete_directories)'");
    } else if (o->argument) {
        printf(" -x");
    }
    printf("\n");
}

static void print_fish(const mgr_program *p)
{
    printf("# Completion of %s for fish, made by %s --completion fish.\n", p->name, p->name);
    for (size_t i = 0; i < p->n_options; i++)
        fish_option(p, &p->options[i]);
    printf("complete -c %s -l completion -d 'print a completion script' -x -a 'bash zsh fish'\n"
           "complete -c %s -l help -d 'print this and exit'\n"
           "complete -c %s -l version -d 'print the version and exit'\n",
           p->name, p->name, p->name);
}

bool mgr_cli_completion(const mgr_program *p, const char *shell)
{
    static const struct {
        const char *shell;
        void (*print)(const mgr_program *);
    } shells[] = {{"bash", print_bash}, {"zsh", print_zsh}, {"fish", print_fish}};
    for (size_t i = 0; i < sizeof shells / sizeof shells[0]; i++) {
        if (strcmp(shells[i].shell, shell) != 0)
            continue;
        shells[i].print(p);
        return true;
    }
    return false;
}
