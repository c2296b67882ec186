#include "fmt/sha256.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "core/say_run.h"
#include "io/file.h"
#include "io/reader.h"

#define BLOCK ((uint64_t)4 << 20)

static int feed(EVP_MD_CTX *hash, const char *path, uint64_t size, unsigned char *block,
                mgr_err *err)
{
    int fd, rc = MGR_OK;
    MGR_TRY(mgr_open_read(path, &fd, err));
    for (uint64_t at = 0; rc == MGR_OK && at < size; at += BLOCK) {
        const size_t n = (size_t)(size - at < BLOCK ? size - at : BLOCK);
        rc = mgr_say_step(n, err);
        if (rc == MGR_OK)
            rc = mgr_pread_full(fd, path, block, n, at, err);
        if (rc == MGR_OK && EVP_DigestUpdate(hash, block, n) != 1)
            rc = mgr_fail(err, MGR_ERR_INTERNAL, "SHA-256 failed on '%s'", path);
    }
    mgr_close(fd);
    return rc;
}

static int finish(EVP_MD_CTX *hash, const char *path, char out[MGR_SHA256_TEXT], mgr_err *err)
{
    unsigned char bytes[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    if (EVP_DigestFinal_ex(hash, bytes, &n) != 1 || 2 * n + 1 != MGR_SHA256_TEXT)
        return mgr_fail(err, MGR_ERR_INTERNAL, "SHA-256 failed on '%s'", path);
    for (unsigned i = 0; i < n; i++)
        snprintf(out + (size_t)2 * i, 3, "%02x", bytes[i]);
    return MGR_OK;
}

int mgr_sha256_file(const char *path, char out[MGR_SHA256_TEXT], mgr_err *err)
{
    unsigned char *block = NULL;
    uint64_t size = 0;
    EVP_MD_CTX *const hash = EVP_MD_CTX_new();
    int rc = mgr_file_bytes(path, &size, err);
    if (rc == MGR_OK && (!hash || EVP_DigestInit_ex(hash, EVP_sha256(), NULL) != 1))
        rc = mgr_fail(err, MGR_ERR_INTERNAL, "the library of OpenSSL has no SHA-256");
    if (rc == MGR_OK)
        rc = mgr_alloc_aligned(&block, BLOCK, err);
    if (rc == MGR_OK)
        rc = feed(hash, path, size, block, err);
    if (rc == MGR_OK)
        rc = finish(hash, path, out, err);
    mgr_free_aligned(block);
    EVP_MD_CTX_free(hash);
    return rc;
}

static int digest_of(const char *text, size_t len, char out[MGR_SHA256_TEXT], mgr_err *err)
{
    EVP_MD_CTX *const hash = EVP_MD_CTX_new();
    int rc = MGR_OK;
    if (!hash || EVP_DigestInit_ex(hash, EVP_sha256(), NULL) != 1 ||
        EVP_DigestUpdate(hash, text, len) != 1)
        rc = mgr_fail(err, MGR_ERR_INTERNAL, "the library of OpenSSL has no SHA-256");
    if (rc == MGR_OK)
        rc = finish(hash, "text", out, err);
    EVP_MD_CTX_free(hash);
    return rc;
}

/* Where the digits of the last seal in `text` begin; NULL if there is none. */
static char *find_seal(char *text, size_t len)
{
    static const char key[] = "\"" MGR_SEAL_KEY "\": \"";
    const size_t n = sizeof key - 1, digits = MGR_SHA256_TEXT - 1;
    for (size_t at = len < n + digits ? 0 : len - n - digits + 1; at-- > 0;)
        if (memcmp(text + at, key, n) == 0)
            return text + at + n;
    return NULL;
}

int mgr_digest_seal(char *text, size_t len, mgr_err *err)
{
    char digest[MGR_SHA256_TEXT];
    char *const place = find_seal(text, len);
    if (!place || memcmp(place, MGR_SEAL_ZEROS, MGR_SHA256_TEXT - 1) != 0)
        return mgr_fail(err, MGR_ERR_INTERNAL, "no place for the digest of a text");
    MGR_TRY(digest_of(text, len, digest, err));
    memcpy(place, digest, MGR_SHA256_TEXT - 1);
    return MGR_OK;
}

int mgr_digest_check(char *text, size_t len, bool *good, mgr_err *err)
{
    char digest[MGR_SHA256_TEXT], said[MGR_SHA256_TEXT] = "";
    char *const place = find_seal(text, len);
    *good = false;
    if (!place)
        return MGR_OK;
    memcpy(said, place, MGR_SHA256_TEXT - 1);
    memcpy(place, MGR_SEAL_ZEROS, MGR_SHA256_TEXT - 1);
    const int rc = digest_of(text, len, digest, err);
    memcpy(place, said, MGR_SHA256_TEXT - 1);
    *good = rc == MGR_OK && memcmp(said, digest, MGR_SHA256_TEXT) == 0;
    return rc;
}
