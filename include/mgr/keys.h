/*
 * How a format, a method or a router declares its keys: rows of a table, and the table. The field
 * that a row names is a member of mgr_config.
 *
 *     static const mgr_key rows[] = {
 *         MGR_ROW_CHOICE("target.compression", target.compression, "none", "none|deflate", "..."),
 *     };
 *     .keys = MGR_KEY_TABLE(MGR_OWNER_TARGET, "hdf5", rows)
 */
#ifndef MGR_KEYS_H
#define MGR_KEYS_H

#include <stddef.h>

#include "mgr/config.h"

#define MGR_FIELD(member) offsetof(mgr_config, member), sizeof(((mgr_config *)0)->member)

/* clang-format off */
#define MGR_ROW_TEXT(name, member, fallback, help) \
    {name, MGR_KEY_TEXT, MGR_FIELD(member), false, fallback, NULL, 0, 0, help}
#define MGR_ROW_PATH(name, member, fallback, help) \
    {name, MGR_KEY_PATH, MGR_FIELD(member), false, fallback, NULL, 0, 0, help}
#define MGR_ROW_REQUIRED_PATH(name, member, help) \
    {name, MGR_KEY_PATH, MGR_FIELD(member), true, NULL, NULL, 0, 0, help}
#define MGR_ROW_CHOICE(name, member, fallback, choices, help) \
    {name, MGR_KEY_CHOICE, MGR_FIELD(member), false, fallback, choices, 0, 0, help}
#define MGR_ROW_UINT(name, member, fallback, min, max, help) \
    {name, MGR_KEY_UINT, MGR_FIELD(member), false, fallback, NULL, min, max, help}
#define MGR_ROW_INT(name, member, fallback, min, max, help) \
    {name, MGR_KEY_INT, MGR_FIELD(member), false, fallback, NULL, min, max, help}
#define MGR_ROW_REAL(name, member, fallback, min, max, help) \
    {name, MGR_KEY_REAL, MGR_FIELD(member), false, fallback, NULL, min, max, help}
#define MGR_ROW_BOOL(name, member, fallback, help) \
    {name, MGR_KEY_BOOL, MGR_FIELD(member), false, fallback, NULL, 0, 0, help}
#define MGR_ROW_BYTES(name, member, fallback, min, max, help) \
    {name, MGR_KEY_BYTES, MGR_FIELD(member), false, fallback, NULL, min, max, help}
#define MGR_ROW_MAP(name, member, help) \
    {name, MGR_KEY_MAP, MGR_FIELD(member), false, "", NULL, 0, 0, help}

#define MGR_KEY_TABLE(kind, owner, rows) {kind, owner, rows, sizeof(rows) / sizeof((rows)[0])}
#define MGR_NO_KEYS(kind, owner) {kind, owner, NULL, 0}
/* clang-format on */

/* Limits are doubles: exact up to 2^53; U64 stands for "any 64-bit number". */
#define MGR_MOST_U64 0x1p64
#define MGR_MOST_I31 2147483647.0
#define MGR_MOST_BYTES 0x1p53
#define MGR_MOST_PARTS 65536.0
#define MGR_MIB 0x1p20

#endif
