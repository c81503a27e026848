/* The reader of ordinary request heads, in the limited API of Python 3.11.

   The contract is one-sided. Where this reader says yes, the reader in Python (http1.py, fields.py) says yes too, with the same
   values. To every other head it answers None, and Python judges. So all policy, all refusals and all rare forms have one home,
   and a fault here can only be a wrong yes: that is what the tests look for.

   Nothing of a request is kept. The table of names is filled at the start and never changes; names that are not in it are made
   for their request. So no client can slow down another one.

   It has no Py_RETURN_NONE: as compiled by Python 3.13.0, that counts no reference, which Python 3.11 needs. */

#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include "_scan.h"

/* Strings that are made once. */
enum {
    REQUEST_METHOD, PATH_INFO, QUERY_STRING, REQUEST_URI, RAW_URI, METHOD, PATH, RAW_PATH, QUERY, VERSION, TEXTS = VERSION + 2
};
static const char *const TEXT[TEXTS] = {
    "REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "REQUEST_URI", "RAW_URI", "method", "path", "raw_path", "query_string",
    "1.0", "1.1",
};

typedef struct {
    PyObject_HEAD
    PyObject *head_type, *texts[TEXTS], *methods[METHOD_COUNT];
    PyObject *names[MOST_NAMES], *keys[MOST_NAMES]; /* of the table: bytes, and the key in an environ or an empty string */
    Names table;
    Limits limits;
} Reader;

/* A head that has been read: `Target` and `Fields` in one. Values that not every request needs are made when they are asked for.
   It refers to nothing that could refer to it, so the garbage collector need not know it. */
typedef struct {
    PyObject_VAR_HEAD
    Reader *reader;
    PyObject *bytes, *method, *line, *version, *headers;
    Facts facts;
    Field fields[];
} Head;

static PyObject *Reader_read(Reader *self, PyObject *bytes)
{
    Scan scan;
    if (!PyBytes_CheckExact(bytes) ||
        !scan_head(&self->table, &self->limits, (const Byte *)PyBytes_AsString(bytes), PyBytes_Size(bytes), &scan))
        return Py_NewRef(Py_None);
    Head *head = PyObject_NewVar(Head, (PyTypeObject *)self->head_type, scan.count);
    if (!head)
        return NULL;
    head->reader = (Reader *)Py_NewRef((PyObject *)self);
    head->bytes = Py_NewRef(bytes);
    head->method = Py_NewRef(self->methods[scan.method]);
    head->line = PyBytes_FromStringAndSize(PyBytes_AsString(bytes), scan.facts.target.at + scan.facts.target.size);
    head->version = Py_NewRef(self->texts[VERSION + scan.minor]);
    head->headers = NULL;
    head->facts = scan.facts;
    memcpy(head->fields, scan.fields, scan.count * sizeof(Field));
    PyObject *both = head->line ? PyTuple_Pack(2, head, head) : NULL;
    Py_DECREF(head);
    return both;
}

/* Values. */

static const char *start_of(const Head *head, Span span) { return PyBytes_AsString(head->bytes) + span.at; }

static PyObject *bytes_of(const Head *head, Span span)
{
    return PyBytes_FromStringAndSize(start_of(head, span), span.size);
}

static PyObject *text_of(const Head *head, Span span)
{
    return PyUnicode_DecodeLatin1(start_of(head, span), span.size, NULL);
}

static int hex(Byte c)
{
    c = lower(c);
    return CLASS[c] & DIGIT ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The path, percent-decoded (RFC 3986 2.1); a "%" without two digits stays. */
static PyObject *Head_path(Head *self, void *unused)
{
    const Byte *at = (const Byte *)start_of(self, self->facts.path), *end = at + self->facts.path.size;
    if (!memchr(at, '%', end - at))
        return bytes_of(self, self->facts.path);
    Byte *decoded = PyMem_Malloc(end - at), *to = decoded;
    if (!decoded)
        return PyErr_NoMemory();
    while (at < end) {
        if (*at == '%' && end - at > 2 && hex(at[1]) >= 0 && hex(at[2]) >= 0) {
            *to++ = (Byte)(hex(at[1]) * 16 + hex(at[2]));
            at += 3;
        }
        else
            *to++ = *at++;
    }
    PyObject *path = PyBytes_FromStringAndSize((char *)decoded, to - decoded);
    PyMem_Free(decoded);
    return path;
}

/* WSGI decodes the path as latin-1 (PEP 3333), ASGI as UTF-8. */
static PyObject *decoded_path(Head *self, int utf8)
{
    if (!memchr(start_of(self, self->facts.path), '%', self->facts.path.size))
        return text_of(self, self->facts.path);
    PyObject *path = Head_path(self, NULL), *text = NULL;
    if (path)
        text = utf8 ? PyUnicode_DecodeUTF8(PyBytes_AsString(path), PyBytes_Size(path), "replace")
                    : PyUnicode_DecodeLatin1(PyBytes_AsString(path), PyBytes_Size(path), NULL);
    Py_XDECREF(path);
    return text;
}

/* Sets dict[key] and releases the value, which is NULL after an error. */
static int put(PyObject *dict, PyObject *key, PyObject *value)
{
    int result = value ? PyDict_SetItem(dict, key, value) : -1;
    Py_XDECREF(value);
    return result;
}

static PyObject *Head_put_line(Head *self, PyObject *environ)
{
    PyObject *const *texts = self->reader->texts, *raw = text_of(self, self->facts.target);
    int failed = !raw || PyDict_SetItem(environ, texts[REQUEST_METHOD], self->method) ||
                 put(environ, texts[PATH_INFO], decoded_path(self, 0)) ||
                 put(environ, texts[QUERY_STRING], text_of(self, self->facts.query)) ||
                 PyDict_SetItem(environ, texts[REQUEST_URI], raw) || PyDict_SetItem(environ, texts[RAW_URI], raw);
    Py_XDECREF(raw);
    if (failed)
        return NULL;
    return Py_NewRef(Py_None);
}

static PyObject *Head_put_scope(Head *self, PyObject *scope)
{
    PyObject *const *texts = self->reader->texts;
    if (PyDict_SetItem(scope, texts[METHOD], self->method) || put(scope, texts[PATH], decoded_path(self, 1)) ||
        put(scope, texts[RAW_PATH], bytes_of(self, self->facts.path)) ||
        put(scope, texts[QUERY], bytes_of(self, self->facts.query)))
        return NULL;
    return Py_NewRef(Py_None);
}

/* The name of a field in lower case, or its key in an environ. */
static PyObject *name_of(const Head *self, const Field *field, int as_key)
{
    if (field->known >= 0)
        return Py_NewRef((as_key ? self->reader->keys : self->reader->names)[field->known]);
    const char *name = start_of(self, field->name);
    char made[5 + LONGEST_NAME] = "HTTP_", *to = as_key ? made + 5 : made;
    for (uint32_t i = 0; i < field->name.size; i++) {
        Byte c = lower((Byte)name[i]);
        *to++ = !as_key ? c : c == '-' ? '_' : c >= 'a' && c <= 'z' ? c & ~0x20 : c;
    }
    return as_key ? PyUnicode_FromStringAndSize(made, to - made) : PyBytes_FromStringAndSize(made, to - made);
}

static PyObject *Head_put_fields(Head *self, PyObject *environ)
{
    for (const Field *field = self->fields, *end = field + Py_SIZE((PyObject *)self); field < end; field++) {
        PyObject *key = name_of(self, field, 1);
        int failed = !key;
        if (key && PyUnicode_GetLength(key))
            failed = put(environ, key, text_of(self, field->value));
        Py_XDECREF(key);
        if (failed)
            return NULL;
    }
    return Py_NewRef(Py_None);
}

/* The value of a field, or None. The name is in lower case. */
static PyObject *Head_get(Head *self, PyObject *name)
{
    if (!PyBytes_Check(name))
        return PyErr_SetString(PyExc_TypeError, "the name must be bytes"), NULL;
    for (const Field *field = self->fields, *end = field + Py_SIZE((PyObject *)self); field < end; field++) {
        const Byte *start = (const Byte *)start_of(self, field->name);
        if (is_word(start, start + field->name.size, PyBytes_AsString(name)))
            return bytes_of(self, field->value);
    }
    return Py_NewRef(Py_None);
}

static PyObject *Head_headers(Head *self, void *unused)
{
    if (!self->headers) {
        PyObject *headers = PyList_New(Py_SIZE((PyObject *)self));
        for (Py_ssize_t i = 0; headers && i < Py_SIZE((PyObject *)self); i++) {
            const Field *field = &self->fields[i];
            PyObject *name = name_of(self, field, 0), *value = bytes_of(self, field->value);
            PyObject *pair = name && value ? PyTuple_Pack(2, name, value) : NULL;
            Py_XDECREF(name);
            Py_XDECREF(value);
            if (pair)
                PyList_SetItem(headers, i, pair);
            else
                Py_CLEAR(headers);
        }
        self->headers = headers;
    }
    return Py_XNewRef(self->headers);
}

static PyObject *Head_raw(Head *self, void *unused) { return text_of(self, self->facts.target); }
static PyObject *Head_raw_path(Head *self, void *unused) { return bytes_of(self, self->facts.path); }
static PyObject *Head_query(Head *self, void *unused) { return bytes_of(self, self->facts.query); }
static PyObject *Head_authority(Head *self, void *unused) { return Py_NewRef(Py_None); }
static PyObject *Head_upgrade(Head *self, void *unused) { return PyBytes_FromStringAndSize(NULL, 0); }

static PyObject *Head_host(Head *self, void *unused)
{
    return self->facts.has_host ? bytes_of(self, self->facts.host) : Py_NewRef(Py_None);
}

static PyObject *Head_content_length(Head *self, void *unused)
{
    return self->facts.content_length < 0 ? Py_NewRef(Py_None) : PyLong_FromLongLong(self->facts.content_length);
}

/* The types. */

static void Head_dealloc(Head *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    Py_DECREF(self->reader);
    Py_DECREF(self->bytes);
    Py_DECREF(self->method);
    Py_DECREF(self->version);
    Py_XDECREF(self->line);
    Py_XDECREF(self->headers);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyMemberDef head_members[] = {
    {"method", T_OBJECT_EX, offsetof(Head, method), READONLY, NULL},
    {"line", T_OBJECT_EX, offsetof(Head, line), READONLY, NULL},
    {"version", T_OBJECT_EX, offsetof(Head, version), READONLY, NULL},
    {"chunked", T_BOOL, offsetof(Head, facts.chunked), READONLY, NULL},
    {"forwarded", T_BOOL, offsetof(Head, facts.forwarded), READONLY, NULL},
    {"keep_alive", T_BOOL, offsetof(Head, facts.keep_alive), READONLY, NULL},
    {"has_body", T_BOOL, offsetof(Head, facts.has_body), READONLY, NULL},
    {"usual", T_BOOL, offsetof(Head, facts.usual), READONLY, NULL},
    {"expect_continue", T_BOOL, offsetof(Head, facts.expect_continue), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyGetSetDef head_getters[] = {
    {"raw", (getter)Head_raw, NULL, NULL, NULL},
    {"path", (getter)Head_path, NULL, NULL, NULL},
    {"raw_path", (getter)Head_raw_path, NULL, NULL, NULL},
    {"query", (getter)Head_query, NULL, NULL, NULL},
    {"authority", (getter)Head_authority, NULL, NULL, NULL},
    {"headers", (getter)Head_headers, NULL, NULL, NULL},
    {"host", (getter)Head_host, NULL, NULL, NULL},
    {"content_length", (getter)Head_content_length, NULL, NULL, NULL},
    {"upgrade", (getter)Head_upgrade, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyMethodDef head_methods[] = {
    {"put_line", (PyCFunction)Head_put_line, METH_O, NULL},
    {"get", (PyCFunction)Head_get, METH_O, NULL},
    {"put_scope", (PyCFunction)Head_put_scope, METH_O, NULL},
    {"put_fields", (PyCFunction)Head_put_fields, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot head_slots[] = {
    {Py_tp_dealloc, Head_dealloc}, {Py_tp_members, head_members}, {Py_tp_getset, head_getters}, {Py_tp_methods, head_methods},
    {0, NULL},
};
static PyType_Spec head_spec = {
    "forkserve.http.message._head.Head", sizeof(Head), sizeof(Field),
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE, head_slots,
};

static void Reader_dealloc(Reader *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    for (int i = 0; i < self->table.count; i++) {
        Py_XDECREF(self->names[i]);
        Py_XDECREF(self->keys[i]);
    }
    for (int i = 0; i < TEXTS; i++)
        Py_XDECREF(self->texts[i]);
    for (int i = 0; i < METHOD_COUNT; i++)
        Py_XDECREF(self->methods[i]);
    Py_XDECREF(self->head_type);
    PyObject_Free(self);
    Py_DECREF(type);
}

/* Fills the table with names and their keys; returns 0 or -1. */
static int fill(Reader *self, PyObject *keys)
{
    PyObject *name, *key;
    for (Py_ssize_t at = 0; PyDict_Next(keys, &at, &name, &key);) {
        char *bytes;
        Py_ssize_t size;
        int index = self->table.count;
        if (PyBytes_AsStringAndSize(name, &bytes, &size))
            return -1;
        if (!PyUnicode_Check(key) || !add_name(&self->table, bytes, size))
            return PyErr_SetString(PyExc_ValueError, "too many names, or one that is too long"), -1;
        self->names[index] = Py_NewRef(name);
        self->keys[index] = Py_NewRef(key);
    }
    if (!has_meanings(&self->table))
        return PyErr_SetString(PyExc_ValueError, "a name with a meaning is missing"), -1;
    return 0;
}

/* Reader(keys, line, fields, head, field): the usual names with their keys in an environ, and `RequestLimits`. */
static PyObject *Reader_new(PyTypeObject *type, PyObject *args, PyObject *unused)
{
    Reader *self = (Reader *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    Limits *limits = &self->limits;
    PyObject *keys, *module = PyType_GetModule(type);
    int made = PyArg_ParseTuple(args, "O!nnnn", &PyDict_Type, &keys, &limits->line, &limits->fields, &limits->head,
                                &limits->field) &&
               (self->head_type = PyObject_GetAttrString(module, "Head"));
    for (int i = 0; made && i < TEXTS; i++)
        made = (self->texts[i] = PyUnicode_InternFromString(TEXT[i])) != NULL;
    for (int i = 0; made && i < METHOD_COUNT; i++)
        made = (self->methods[i] = PyUnicode_InternFromString(METHODS[i])) != NULL;
    if (!made || fill(self, keys))
        Py_CLEAR(self);
    return (PyObject *)self;
}

static PyMethodDef reader_methods[] = {
    {"read", (PyCFunction)Reader_read, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot reader_slots[] = {
    {Py_tp_new, Reader_new}, {Py_tp_dealloc, Reader_dealloc}, {Py_tp_methods, reader_methods}, {0, NULL},
};
static PyType_Spec reader_spec = {
    "forkserve.http.message._head.Reader", sizeof(Reader), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, reader_slots,
};

static int add_types(PyObject *module)
{
    PyType_Spec *const specs[] = {&head_spec, &reader_spec};
    for (int i = 0; i < 2; i++) {
        PyObject *type = PyType_FromModuleAndSpec(module, specs[i], NULL);
        int failed = !type || PyModule_AddType(module, (PyTypeObject *)type);
        Py_XDECREF(type);
        if (failed)
            return -1;
    }
    return 0;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, add_types}, {0, NULL}};
static struct PyModuleDef module_definition = {PyModuleDef_HEAD_INIT, .m_name = "_head", .m_slots = module_slots};

PyMODINIT_FUNC PyInit__head(void) { return PyModuleDef_Init(&module_definition); }
