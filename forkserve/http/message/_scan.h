/* Finds the parts of an ordinary request head (RFC 9110, RFC 9112). Plain C: bytes in, positions out.

   `scan_head` says no to every head that is not ordinary. These are the malformed ones, and the rare forms: methods but the seven
   below, targets that do not begin with a slash, an empty line in front, repeated names, names with an underscore, the fields
   Expect, Upgrade and Proxy, and names longer than LONGEST_NAME.

   A NUL stands behind the bytes of a head, and belongs to no class of bytes, so a loop over a class ends there at the latest. The
   work is linear in the size of the head, but for names that are not in the table: each of them, of at most MOST_FIELDS, is
   compared with the others. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { MOST_FIELDS = 128, MOST_NAMES = 255, SLOTS = 512, LONGEST_NAME = 64, LARGEST_HEAD = 1 << 24 };

typedef unsigned char Byte;

/* What a byte may be a part of. NAME: a token (RFC 9110 5.6.2). TARGET: visible ASCII but "#" (RFC 9112 3.2). HOST: the usual
   name of a host (RFC 3986 3.2.2). ADDRESS: an IP literal. */
enum { NAME = 1, TARGET = 2, HOST = 4, ADDRESS = 8, DIGIT = 16 };
static const Byte CLASS[256] = {
    ['0' ... '9'] = NAME | TARGET | HOST | ADDRESS | DIGIT,
    ['A' ... 'F'] = NAME | TARGET | HOST | ADDRESS, ['G' ... 'Z'] = NAME | TARGET | HOST,
    ['a' ... 'f'] = NAME | TARGET | HOST | ADDRESS, ['g' ... 'z'] = NAME | TARGET | HOST,
    ['.'] = NAME | TARGET | HOST | ADDRESS, ['-'] = NAME | TARGET | HOST, ['_'] = NAME | TARGET | HOST,
    ['!'] = NAME | TARGET, ['$' ... '\''] = NAME | TARGET, ['*' ... '+'] = NAME | TARGET, ['^'] = NAME | TARGET,
    ['`'] = NAME | TARGET, ['|'] = NAME | TARGET, ['~'] = NAME | TARGET, ['#'] = NAME, [':'] = TARGET | ADDRESS,
    ['"'] = TARGET, ['(' ... ')'] = TARGET, [','] = TARGET, ['/'] = TARGET, [';' ... '@'] = TARGET, ['[' ... ']'] = TARGET,
    ['{'] = TARGET, ['}'] = TARGET,
};

static const char *const METHODS[] = {"GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"};
enum { METHOD_COUNT = sizeof METHODS / sizeof METHODS[0] };

/* What a name means to the server. */
typedef enum { PLAIN, IS_HOST, CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION, FORWARDED, RARE } Meaning;
static const struct {
    const char *name;
    Meaning meaning;
} MEANINGS[] = {
    {"host", IS_HOST}, {"content-length", CONTENT_LENGTH}, {"transfer-encoding", TRANSFER_ENCODING}, {"connection", CONNECTION},
    {"x-forwarded-for", FORWARDED}, {"x-forwarded-proto", FORWARDED}, {"expect", RARE}, {"upgrade", RARE}, {"proxy", RARE},
};

/* A name that is in the table. */
typedef struct {
    const char *bytes; /* in lower case */
    size_t size;
    uint32_t hash;
    Meaning meaning;
} Name;

/* Usual names. It is filled once, and never changes while heads are read. */
typedef struct {
    int count;
    Name names[MOST_NAMES];
    Byte slots[SLOTS]; /* a hash table: 1 + the index of a name, or 0 */
} Names;

/* `RequestLimits` */
typedef struct {
    ptrdiff_t line, fields, head, field;
} Limits;

typedef struct {
    uint32_t at, size;
} Span; /* a part of the head */

typedef struct {
    Span name, value;
    int known; /* the index of its name in the table, or -1 */
} Field;

/* What the request line says, and the fields with a meaning. */
typedef struct {
    Span target, path, query, host;
    long long content_length; /* -1: there is none */
    char has_host, chunked, forwarded, keep_alive, has_body;
    char usual; /* HTTP/1.1, kept, without a body */
    char expect_continue; /* never, as Expect is rare */
} Facts;

typedef struct {
    int method, minor; /* the index of the method; HTTP/1.minor */
    int options, count;
    Facts facts;
    Field fields[MOST_FIELDS];
} Scan;

static Byte lower(Byte c) { return c >= 'A' && c <= 'Z' ? c | 0x20 : c; }

static int is_blank(Byte c) { return c == ' ' || c == '\t'; }

static int is_word(const Byte *at, const Byte *end, const char *word)
{
    for (; at < end && *word && lower(*at) == (Byte)*word; at++, word++) {}
    return at == end && !*word;
}

/* The table of names. */

enum { HASH_START = 5381 };
static uint32_t add_to_hash(uint32_t hash, Byte c) { return (hash ^ c) * 16777619u; }

static int find_name(const Names *table, const Byte *bytes, size_t size, uint32_t hash)
{
    for (uint32_t slot = hash % SLOTS; table->slots[slot]; slot = (slot + 1) % SLOTS) {
        int index = table->slots[slot] - 1;
        const Name *name = &table->names[index];
        if (name->hash == hash && name->size == size && !memcmp(name->bytes, bytes, size))
            return index;
    }
    return -1;
}

/* Returns whether there is room for it. The table refers to the bytes. */
static int add_name(Names *table, const char *bytes, size_t size)
{
    if (table->count == MOST_NAMES || size > LONGEST_NAME)
        return 0;
    Name *name = &table->names[table->count++];
    *name = (Name){bytes, size, HASH_START, PLAIN};
    for (size_t i = 0; i < size; i++)
        name->hash = add_to_hash(name->hash, (Byte)bytes[i]);
    for (size_t i = 0; i < sizeof MEANINGS / sizeof MEANINGS[0]; i++)
        if (!strcmp(bytes, MEANINGS[i].name))
            name->meaning = MEANINGS[i].meaning;
    uint32_t slot = name->hash % SLOTS;
    while (table->slots[slot])
        slot = (slot + 1) % SLOTS;
    table->slots[slot] = (Byte)table->count;
    return 1;
}

/* Whether every name that has a meaning is in the table: one that is not would be taken for a plain one. */
static int has_meanings(const Names *table)
{
    for (size_t i = 0; i < sizeof MEANINGS / sizeof MEANINGS[0]; i++) {
        uint32_t hash = HASH_START;
        for (const char *c = MEANINGS[i].name; *c; c++)
            hash = add_to_hash(hash, (Byte)*c);
        if (find_name(table, (const Byte *)MEANINGS[i].name, strlen(MEANINGS[i].name), hash) < 0)
            return 0;
    }
    return 1;
}

/* The parts of a head. Each of these functions returns whether its part is an ordinary one. */

/* No control character but tabs and line ends (RFC 9110 5.5). Counts the LFs. */
static int is_plain(const Byte *bytes, ptrdiff_t size, int *feeds)
{
    Byte bad = 0;
    int count = 0;
    for (ptrdiff_t i = 0; i < size; i++) {
        Byte c = bytes[i];
        bad |= ((c < 0x20) & (c != '\t') & (c != '\r') & (c != '\n')) | (c == 0x7f);
        count += c == '\n';
    }
    *feeds = count;
    return !bad;
}

/* request-line = method SP request-target SP HTTP-version (RFC 9112 3), with the origin-form of a target (3.2.1) */
static int scan_request_line(const Byte *bytes, const Byte *end, Scan *scan)
{
    const Byte *at = memchr(bytes, ' ', end - bytes);
    if (!at)
        return 0;
    size_t size = at - bytes;
    for (scan->method = 0; scan->method < METHOD_COUNT; scan->method++)
        if (strlen(METHODS[scan->method]) == size && !memcmp(METHODS[scan->method], bytes, size))
            break;
    const Byte *target = ++at;
    if (scan->method == METHOD_COUNT || *at != '/')
        return 0;
    while ((CLASS[*at] & TARGET) && *at != '?')
        at++;
    scan->facts.path = (Span){target - bytes, at - target};
    const Byte *query = *at == '?' ? ++at : at;
    while (CLASS[*at] & TARGET)
        at++;
    scan->facts.query = (Span){query - bytes, at - query};
    scan->facts.target = (Span){target - bytes, at - target};
    if (end - at != 9 || memcmp(at, " HTTP/1.", 8) || (at[8] != '0' && at[8] != '1'))
        return 0;
    scan->minor = at[8] - '0';
    return 1;
}

/* Host = uri-host [ ":" port ] (RFC 9110 7.2) */
static int scan_host(const Byte *at, const Byte *end)
{
    if (at < end && *at == '[') {
        const Byte *address = ++at;
        while (CLASS[*at] & ADDRESS)
            at++;
        if (at == address || *at++ != ']')
            return 0;
    }
    else
        while (CLASS[*at] & HOST)
            at++;
    if (at < end && *at == ':') {
        int port = 0;
        for (const Byte *first = ++at; (CLASS[*at] & DIGIT) && at - first < 5; at++)
            port = port * 10 + (*at - '0');
        if (port > 65535)
            return 0;
    }
    return at == end;
}

/* Content-Length = 1*DIGIT (RFC 9110 8.6) */
static int scan_length(const Byte *at, const Byte *end, long long *length)
{
    if (at == end || end - at > 18)
        return 0;
    for (*length = 0; at < end; at++) {
        if (!(CLASS[*at] & DIGIT))
            return 0;
        *length = *length * 10 + (*at - '0');
    }
    return 1;
}

/* Connection = #connection-option (RFC 9110 7.6.1); options without a meaning here are ignored. */
enum { CLOSE = 1, KEEP_ALIVE = 2 };
static int scan_options(const Byte *at, const Byte *end)
{
    int options = 0;
    while (at < end) {
        const Byte *comma = memchr(at, ',', end - at), *last = comma ? comma : end, *next = last + 1;
        while (at < last && is_blank(*at))
            at++;
        while (last > at && is_blank(last[-1]))
            last--;
        options |= is_word(at, last, "close") ? CLOSE : is_word(at, last, "keep-alive") ? KEEP_ALIVE : 0;
        at = next;
    }
    return options;
}

static int scan_value(Meaning meaning, const Byte *bytes, Span value, Scan *scan)
{
    const Byte *at = bytes + value.at, *end = at + value.size;
    switch (meaning) {
    case PLAIN:
        return 1;
    case IS_HOST:
        scan->facts.host = value;
        scan->facts.has_host = 1;
        return scan_host(at, end);
    case CONTENT_LENGTH:
        return scan_length(at, end, &scan->facts.content_length);
    case TRANSFER_ENCODING: /* RFC 9112 6.1 */
        scan->facts.chunked = 1;
        return scan->minor && is_word(at, end, "chunked");
    case CONNECTION:
        scan->options = scan_options(at, end);
        return 1;
    case FORWARDED:
        scan->facts.forwarded = 1;
        return 1;
    default:
        return 0;
    }
}

/* field-line = field-name ":" OWS field-value OWS (RFC 9112 5). Ends at the empty line behind the last one. */
static int scan_fields(const Names *table, const Limits *limits, const Byte *bytes, const Byte *at, const Byte *end, Scan *scan)
{
    Byte seen[MOST_NAMES] = {0};
    uint32_t others[MOST_FIELDS]; /* hashes of the names that are not in the table */
    int other_count = 0;
    for (scan->count = 0; *at != '\r'; scan->count++) {
        const Byte *line = at, *last = memchr(at, '\r', end - at);
        Byte name[LONGEST_NAME];
        uint32_t size = 0, hash = HASH_START;
        if (!last || last[1] != '\n' || scan->count == MOST_FIELDS || scan->count >= limits->fields ||
            (limits->field && last - line > limits->field))
            return 0;
        for (; (CLASS[*at] & NAME) && *at != '_' && size < LONGEST_NAME; at++)
            hash = add_to_hash(hash, name[size++] = lower(*at));
        if (!size || *at != ':')
            return 0;
        const Byte *value = at + 1;
        at = last + 2;
        while (is_blank(*value))
            value++;
        while (last > value && is_blank(last[-1]))
            last--;
        Field *field = &scan->fields[scan->count];
        *field = (Field){{line - bytes, size}, {value - bytes, last - value}, find_name(table, name, size, hash)};
        if (field->known >= 0) {
            if (seen[field->known]++ || !scan_value(table->names[field->known].meaning, bytes, field->value, scan))
                return 0;
        }
        else {
            for (int i = 0; i < other_count; i++)
                if (others[i] == hash) /* the same name, or one that only looks like it */
                    return 0;
            others[other_count++] = hash;
        }
    }
    return at + 2 == end && at[1] == '\n';
}

static int scan_head(const Names *table, const Limits *limits, const Byte *bytes, ptrdiff_t size, Scan *scan)
{
    int feeds;
    if (size < 4 || size > limits->head || size > LARGEST_HEAD || memcmp(bytes + size - 4, "\r\n\r\n", 4) ||
        !is_plain(bytes, size, &feeds))
        return 0;
    memset(scan, 0, offsetof(Scan, fields));
    scan->facts.content_length = -1;
    const Byte *end = memchr(bytes, '\r', size);
    if (!end || end[1] != '\n' || end - bytes > limits->line || !scan_request_line(bytes, end, scan) ||
        !scan_fields(table, limits, bytes, end + 2, bytes + size, scan))
        return 0;
    Facts *facts = &scan->facts;
    facts->keep_alive = !(scan->options & CLOSE) && (scan->minor || (scan->options & KEEP_ALIVE)); /* RFC 9112 9.3 */
    facts->has_body = facts->chunked || facts->content_length > 0;                                 /* RFC 9112 6.3 */
    facts->usual = facts->keep_alive && scan->minor && !facts->has_body;
    return feeds == scan->count + 2                             /* no LF stands alone: RFC 9112 2.2 */
           && (facts->has_host || !scan->minor)                 /* RFC 9112 3.2 */
           && !(facts->chunked && facts->content_length >= 0); /* RFC 9112 6.1 */
}
