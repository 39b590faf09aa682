/* The agent: HTTP/1.1 with GET /health and GET /metrics. */
#include "probe.h"

enum { BODY_MAX = 1536 }; /* leaves room for the head in TCP_TX_MAX */

static const char WRONG_ID[] = "00000000-0000-4000-8000-00000000dead";

struct request {
    const char *method, *path;
    size_t method_len, path_len;
    bool http10, close, keep_alive, has_body;
};

/* Length of the head including its blank line; 0: not complete. */
static size_t head_length(const char *in, size_t len)
{
    for (size_t i = 3; i < len; i++) {
        /* A head ends in \n\r\n; whatever is not \r or \n allows a leap of 4. */
        if (in[i] > '\r')
            i += 3;
        else if (in[i] == '\n' && memcmp(in + i - 3, "\r\n\r\n", 4) == 0)
            return i + 1;
    }
    return 0;
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c | 32) : c;
}

static bool starts_with(const char *s, size_t len, const char *prefix)
{
    size_t n = strlen(prefix);

    if (len < n)
        return false;
    for (size_t i = 0; i < n; i++)
        if (lower(s[i]) != prefix[i])
            return false;
    return true;
}

static bool mentions(const char *s, size_t len, const char *token)
{
    for (size_t i = 0; i < len; i++)
        if (starts_with(s + i, len - i, token))
            return true;
    return false;
}

static void parse_header(struct request *r, const char *line, size_t len)
{
    if (len == 0 || (lower(line[0]) != 'c' && lower(line[0]) != 't'))
        return;
    if (starts_with(line, len, "connection:")) {
        r->close |= mentions(line, len, "close");
        r->keep_alive |= mentions(line, len, "keep-alive");
    } else if (starts_with(line, len, "content-length:")) {
        r->has_body |= !mentions(line, len, ": 0");
    } else if (starts_with(line, len, "transfer-encoding:")) {
        r->has_body = true;
    }
}

static bool parse_request_line(struct request *r, const char *s, size_t len)
{
    size_t a = 0, b;

    while (a < len && s[a] != ' ')
        a++;
    for (b = a + 1; b < len && s[b] != ' '; b++)
        ;
    if (a == 0 || b >= len || s[a + 1] != '/' || !starts_with(s + b + 1, len - b - 1, "http/1."))
        return false;
    r->method = s;
    r->method_len = a;
    r->path = s + a + 1;
    for (r->path_len = 0; r->path_len < b - a - 1; r->path_len++)
        if (r->path[r->path_len] == '?')
            break;
    r->http10 = s[len - 1] == '0';
    return true;
}

static bool parse(struct request *r, const char *head, size_t len)
{
    size_t start = 0;
    bool first = true;

    *r = (struct request){ 0 };
    for (size_t i = 0; i + 1 < len; i++) {
        if (head[i] != '\r' || head[i + 1] != '\n')
            continue;
        if (first && !parse_request_line(r, head, i))
            return false;
        if (!first)
            parse_header(r, head + start, i - start);
        first = false;
        start = i + 2;
    }
    r->close |= r->has_body || (r->http10 && !r->keep_alive);
    return !first;
}

static bool is(const char *s, size_t len, const char *what)
{
    return len == strlen(what) && memcmp(s, what, len) == 0;
}

static void put_timestamp(struct text *t, uint64_t ms)
{
    /* Civil date from days since 1970-01-01 (Howard Hinnant's algorithm). */
    uint64_t days = ms / 86400000 + 719468, rest = ms % 86400000;
    uint64_t era = days / 146097, doe = days % 146097;
    uint64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    uint64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    uint64_t mp = (5 * doy + 2) / 153, day = doy - (153 * mp + 2) / 5 + 1;
    uint64_t month = mp < 10 ? mp + 3 : mp - 9;
    uint64_t year = yoe + era * 400 + (month <= 2);

    text_format(t, "%04U-%02U-%02UT%02U:%02U:%02U.%03UZ", year, month, day,
                rest / 3600000, rest / 60000 % 60, rest / 1000 % 60, rest % 1000);
}

static void put_health(struct text *t)
{
    uint64_t up_ms = clock_ns() / NS_PER_MS, wall = clock_wall_ms();

    text_format(t, "{\"status\":\"%s\"", config.status < 400 ? "ok" : "error");
    if (wall) {
        text_format(t, ",\"timestamp\":\"");
        put_timestamp(t, wall);
        text_char(t, '"');
    }
    text_format(t, ",\"uptime\":%U.%03U,\"activeSessions\":0", up_ms / 1000, up_ms % 1000);
    if (config.wrong_id)
        text_format(t, ",\"vmId\":\"%s\"", WRONG_ID);
    else if (config.vm_id[0] && !config.no_id)
        text_format(t, ",\"vmId\":\"%s\"", config.vm_id);
    text_char(t, '}');
}

static void put_metric(struct text *t, const char *name, const char *kind, uint64_t value)
{
    text_format(t, "# TYPE %s %s\n%s %U\n", name, kind, name, value);
}

static void put_metrics(struct text *t)
{
    uint64_t up_ms = clock_ns() / NS_PER_MS;

    text_format(t, "# TYPE probe_uptime_seconds gauge\nprobe_uptime_seconds %U.%03U\n",
                up_ms / 1000, up_ms % 1000);
    put_metric(t, "probe_received_frames_total", "counter", virtio_counters.rx_frames);
    put_metric(t, "probe_sent_frames_total", "counter", virtio_counters.tx_frames);
    put_metric(t, "probe_dropped_frames_total", "counter",
               virtio_counters.rx_dropped + virtio_counters.tx_dropped);
    put_metric(t, "probe_device_interrupts_total", "counter", idle_device_irqs());
    put_metric(t, "probe_idle_halts", "gauge", idle_halts());
    put_metric(t, "probe_tcp_connections", "gauge", tcp_open_connections());
}

static const char *reason(uint32_t status)
{
    switch (status) {
    case 200: return "OK";
    case 204: return "No Content";
    case 400: return "Bad Request";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 503: return "Service Unavailable";
    default: return "Injected";
    }
}

static void respond(struct text *out, uint32_t status, const char *type,
                    const struct text *body, bool with_body, bool close)
{
    text_format(out, "HTTP/1.1 %u %s\r\nContent-Type: %s\r\nContent-Length: %U\r\n"
                     "Connection: %s\r\n\r\n", status, reason(status), type,
                (uint64_t)body->len, close ? "close" : "keep-alive");
    if (with_body)
        text_bytes(out, body->data, body->len);
}

static void answer(const struct request *r, struct text *out, bool close)
{
    static char storage[BODY_MAX];
    struct text body = { storage, 0, BODY_MAX };
    const char *type = "application/json";
    bool head = is(r->method, r->method_len, "HEAD");
    uint32_t status = 200;

    if (!head && !is(r->method, r->method_len, "GET")) {
        status = 405;
        text_format(&body, "{\"error\":\"method not allowed\"}");
    } else if (is(r->path, r->path_len, "/health")) {
        status = config.status;
        if (config.has_body)
            text_bytes(&body, config.body, strlen(config.body));
        else
            put_health(&body);
    } else if (is(r->path, r->path_len, "/metrics")) {
        type = "text/plain; version=0.0.4";
        put_metrics(&body);
    } else {
        status = 404;
        text_format(&body, "{\"error\":\"not found\"}");
    }
    respond(out, status, type, &body, !head, close);
}

size_t http_serve(const char *in, size_t len, struct text *out, bool *close)
{
    static const struct text nothing;
    struct request r;
    size_t head;

    if (config.hang)
        return 0;
    head = head_length(in, len);
    if (head == 0) {
        if (len < TCP_RX_MAX)
            return 0;
        *close = true;
        respond(out, 431, "text/plain", &nothing, true, true);
        return len;
    }
    if (!parse(&r, in, head)) {
        *close = true;
        respond(out, 400, "text/plain", &nothing, true, true);
        return len;
    }
    *close = r.close || !(is(r.method, r.method_len, "GET") || is(r.method, r.method_len, "HEAD"));
    answer(&r, out, *close);
    return *close ? len : head;
}
