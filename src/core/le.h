/* Little-endian loads and stores; file bytes are never cast to structs. */
#ifndef MGR_CORE_LE_H
#define MGR_CORE_LE_H

#include <stdint.h>

static inline uint16_t mgr_load_u16(const void *p)
{
    const unsigned char *b = p;
    return (uint16_t)(b[0] | (uint16_t)(b[1] << 8));
}

static inline uint32_t mgr_load_u32(const void *p)
{
    const unsigned char *b = p;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

static inline uint64_t mgr_load_u64(const void *p)
{
    const unsigned char *b = p;
    return (uint64_t)mgr_load_u32(b) | (uint64_t)mgr_load_u32(b + 4) << 32;
}

static inline void mgr_store_u16(void *p, uint16_t v)
{
    unsigned char *b = p;
    b[0] = (unsigned char)v;
    b[1] = (unsigned char)(v >> 8);
}

static inline void mgr_store_u32(void *p, uint32_t v)
{
    mgr_store_u16(p, (uint16_t)v);
    mgr_store_u16((unsigned char *)p + 2, (uint16_t)(v >> 16));
}

static inline void mgr_store_u64(void *p, uint64_t v)
{
    mgr_store_u32(p, (uint32_t)v);
    mgr_store_u32((unsigned char *)p + 4, (uint32_t)(v >> 32));
}

#endif
