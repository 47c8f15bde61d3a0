/* Load on a server of lines: one process, one epoll loop, every reply checked, the time from an
 * operation's first byte to its last reply kept.
 *
 *   loadgen PORT CONNECTIONS WINDOW WARM SECONDS RATE EVERY < script
 *
 * WINDOW operations are under way on each connection. The clock runs for SECONDS after WARM seconds;
 * then nothing more is begun and all come home. RATE above 0: so many operations are begun a second
 * over all connections, and their time counts from when they were due. EVERY above 0: one line of
 * figures each EVERY seconds, of what ended since the last.
 *
 * The script has a word and a text a line. Per connection, before any clock runs:
 *   open TEXT       written once, and then a reply for each "expect" below it
 * Per operation, one after another; more than one "send" needs WINDOW 1:
 *   send TEXT       written when all replies above have come
 *   expect PATTERN  one line of a reply; without any, the operation ends with the write
 *   ignore PATTERN  a line that may come at any time
 *
 * Of a text and a pattern: \r and \n; {n} the operation's number in ten digits, {c} the
 * connection's. Of a text: {id} what was taken last. Of a pattern: {=id} takes everything up to the
 * character that follows in the pattern, {*} is the line's rest. A line of a reply ends with LF, and
 * a CR before it is no part of it. Any other line ends the run.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    PIECES_MAX = 16,
    EXPECTS_MAX = 8,
    STEPS_MAX = 8,
    IGNORES_MAX = 4,
    ID_BYTES_MAX = 256,
    INPUT_BYTES = 1 << 18,
    OUTPUT_BYTES = 1 << 18,
    WINDOW_MAX = 1024,
    EVENTS_MAX = 256,
    STALL_MS = 20000,
};

enum kind { LITERAL, NUMBER, CONNECTION, USE_ID, TAKE_ID, REST };

struct piece {
    enum kind kind;
    char *text;
    size_t size;
};

struct form {
    struct piece pieces[PIECES_MAX];
    int count;
};

struct step {
    struct form send;
    struct form expects[EXPECTS_MAX];
    int count;
};

struct operation {
    uint64_t number;
    double began;
};

struct connection {
    int fd;
    int place;
    int step;
    int seen; /* replies to this step so far */
    int waits; /* EPOLLOUT is asked for */
    int first, under_way; /* of the ring: operations end in the order they were begun */
    char id[ID_BYTES_MAX];
    size_t id_size, input_size, output_at, output_size;
    struct operation ring[WINDOW_MAX];
    char input[INPUT_BYTES], output[OUTPUT_BYTES];
};

static struct step opening, steps[STEPS_MAX];
static struct form ignores[IGNORES_MAX];
static int steps_count, ignores_count, window, has_opening;
static uint64_t next_number, ended, counted, begun;
static uint32_t *times;
static size_t times_count, times_room;

static void fail(const char *format, ...)
{
    va_list given;
    va_start(given, format);
    fputs("loadgen: ", stderr);
    vfprintf(stderr, format, given);
    fputc('\n', stderr);
    va_end(given);
    exit(1);
}

static double now_s(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static double cpu_s(void)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec)
        + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

/* -- the script --------------------------------------------------------------------------------- */

static const struct {
    const char *text;
    enum kind kind;
} marks[] = {
    {"{n}", NUMBER}, {"{c}", CONNECTION}, {"{id}", USE_ID}, {"{=id}", TAKE_ID}, {"{*}", REST},
};

static struct piece *add(struct form *form, enum kind kind)
{
    if (form->count == PIECES_MAX)
        fail("a line of the script has more than %d pieces", PIECES_MAX);
    struct piece *piece = &form->pieces[form->count++];
    piece->kind = kind;
    piece->size = 0;
    return piece;
}

static void parse(struct form *form, const char *text)
{
    struct piece *literal = NULL;
    while (*text) {
        size_t mark = 0, all = sizeof marks / sizeof *marks;
        while (mark < all && strncmp(text, marks[mark].text, strlen(marks[mark].text)) != 0)
            mark++;
        if (mark < all) {
            add(form, marks[mark].kind);
            text += strlen(marks[mark].text);
            literal = NULL;
            continue;
        }
        if (literal == NULL) {
            literal = add(form, LITERAL);
            literal->text = malloc(strlen(text));
        }
        char one = *text++;
        if (one == '\\' && (*text == 'r' || *text == 'n'))
            one = *text++ == 'r' ? '\r' : '\n';
        literal->text[literal->size++] = one;
    }
}

static void read_script(void)
{
    char *line = NULL;
    size_t room = 0;
    ssize_t size;
    struct step *last = NULL;
    while ((size = getline(&line, &room, stdin)) > 0) {
        if (line[size - 1] == '\n')
            line[--size] = 0;
        char *text = strchr(line, ' ');
        if (text == NULL)
            fail("the script: a word and a text a line, not '%s'", line);
        *text++ = 0;
        if (strcmp(line, "open") == 0) {
            last = &opening;
            has_opening = 1;
            parse(&last->send, text);
        } else if (strcmp(line, "send") == 0) {
            if (steps_count == STEPS_MAX)
                fail("the script: more than %d steps", STEPS_MAX);
            last = &steps[steps_count++];
            parse(&last->send, text);
        } else if (strcmp(line, "expect") == 0 && last && last->count < EXPECTS_MAX) {
            parse(&last->expects[last->count++], text);
        } else if (strcmp(line, "ignore") == 0 && ignores_count < IGNORES_MAX) {
            parse(&ignores[ignores_count++], text);
        } else {
            fail("the script: '%s' can't stand here", line);
        }
    }
    free(line);
    if (steps_count == 0 || (steps_count > 1 && window > 1))
        fail("the script needs a step, and a window of 1 where it has more");
    if (steps[0].count == 0)
        fail("the script expects no reply to what begins an operation");
}

/* -- one connection ----------------------------------------------------------------------------- */

static void put(struct connection *one, const char *text, size_t size)
{
    if (one->output_size + size > OUTPUT_BYTES)
        fail("the server does not read: %zu bytes wait for it", one->output_size);
    memcpy(one->output + one->output_size, text, size);
    one->output_size += size;
}

static void write_form(struct connection *one, const struct form *form, uint64_t number)
{
    char digits[32];
    for (int place = 0; place < form->count; place++) {
        const struct piece *piece = &form->pieces[place];
        switch (piece->kind) {
        case LITERAL:
            put(one, piece->text, piece->size);
            break;
        case NUMBER:
            put(one, digits, (size_t)snprintf(digits, sizeof digits, "%010lu", number));
            break;
        case CONNECTION:
            put(one, digits, (size_t)snprintf(digits, sizeof digits, "%d", one->place));
            break;
        case USE_ID:
            put(one, one->id, one->id_size);
            break;
        default:
            fail("the script: a text takes nothing");
        }
    }
}

static int skip(const char **line, size_t *size, const char *text, size_t count)
{
    if (*size < count || memcmp(*line, text, count) != 0)
        return 0;
    *line += count;
    *size -= count;
    return 1;
}

static int fits(struct connection *one, const struct form *form, uint64_t number, const char *line,
                size_t size)
{
    char digits[32];
    for (int place = 0; place < form->count; place++) {
        const struct piece *piece = &form->pieces[place];
        size_t count = 0;
        switch (piece->kind) {
        case LITERAL:
            if (!skip(&line, &size, piece->text, piece->size))
                return 0;
            break;
        case NUMBER:
            count = (size_t)snprintf(digits, sizeof digits, "%010lu", number);
            if (!skip(&line, &size, digits, count))
                return 0;
            break;
        case CONNECTION:
            count = (size_t)snprintf(digits, sizeof digits, "%d", one->place);
            if (!skip(&line, &size, digits, count))
                return 0;
            break;
        case USE_ID:
            if (!skip(&line, &size, one->id, one->id_size))
                return 0;
            break;
        case TAKE_ID: {
            int last = place + 1 == form->count;
            char end = last ? 0 : form->pieces[place + 1].text[0];
            while (count < size && (last || line[count] != end))
                count++;
            if (count == 0 || count > ID_BYTES_MAX)
                return 0;
            memcpy(one->id, line, count);
            one->id_size = count;
            line += count;
            size -= count;
            break;
        }
        case REST:
            return 1;
        }
    }
    return size == 0;
}

static void flush(struct connection *one, int epoll)
{
    while (one->output_at < one->output_size) {
        ssize_t sent = send(one->fd, one->output + one->output_at,
                            one->output_size - one->output_at, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN)
            break;
        if (sent < 0)
            fail("connection %d: write: %s", one->place, strerror(errno));
        one->output_at += (size_t)sent;
    }
    int rest = one->output_at < one->output_size;
    if (!rest)
        one->output_at = one->output_size = 0;
    if (rest != one->waits && epoll >= 0) {
        struct epoll_event event = {.events = EPOLLIN | (rest ? EPOLLOUT : 0), .data.ptr = one};
        epoll_ctl(epoll, EPOLL_CTL_MOD, one->fd, &event);
        one->waits = rest;
    }
}

static void begin(struct connection *one, double at)
{
    struct operation *fresh = &one->ring[(one->first + one->under_way++) % window];
    fresh->number = next_number++;
    fresh->began = at;
    begun++;
    write_form(one, &steps[0].send, fresh->number);
}

static void keep_time(double seconds)
{
    if (times_count == times_room) {
        times_room = times_room ? 2 * times_room : 1 << 16;
        times = realloc(times, times_room * sizeof *times);
        if (times == NULL)
            fail("no memory");
    }
    times[times_count++] = (uint32_t)(seconds * 1e6 + 0.5);
}

/* Return 1 when the line was the last of its operation. */
static int take(struct connection *one, const char *line, size_t size)
{
    struct operation *now = &one->ring[one->first];
    struct step *step = &steps[one->step];
    if (one->under_way && fits(one, &step->expects[one->seen], now->number, line, size)) {
        if (++one->seen < step->count)
            return 0;
        one->seen = 0;
        while (++one->step < steps_count) {
            write_form(one, &steps[one->step].send, now->number);
            if (steps[one->step].count)
                return 0;
        }
        one->step = 0;
        one->first = (one->first + 1) % window;
        one->under_way--;
        return 1;
    }
    for (int place = 0; place < ignores_count; place++)
        if (fits(one, &ignores[place], 0, line, size))
            return 0;
    fail("connection %d, operation %lu, step %d: not the reply that was expected: %.*s", one->place,
         now->number, one->step, (int)(size < 400 ? size : 400), line);
    return 0;
}

/* -- all connections ---------------------------------------------------------------------------- */

static void connect_to(struct connection *one, int port)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int yes = 1;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    one->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (one->fd < 0 || connect(one->fd, (struct sockaddr *)&to, sizeof to) != 0)
        fail("connect to port %d: %s", port, strerror(errno));
    setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (!has_opening)
        return;
    write_form(one, &opening.send, 0);
    flush(one, -1);
    for (int seen = 0; seen < opening.count; seen++) {
        size_t size = 0;
        /* Byte by byte: what follows the opening is read by the loop. */
        while (size < INPUT_BYTES && recv(one->fd, one->input + size, 1, 0) == 1
               && one->input[size] != '\n')
            size++;
        if (size && one->input[size - 1] == '\r')
            size--;
        if (!fits(one, &opening.expects[seen], 0, one->input, size))
            fail("connection %d: opened with: %.*s", one->place, (int)size, one->input);
    }
}

static int by_size(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return a < b ? -1 : a > b;
}

static double share(double part)
{
    if (times_count == 0)
        return 0;
    return times[(size_t)(part * (double)(times_count - 1))] / 1e3;
}

static void report(double seconds, double cpu)
{
    qsort(times, times_count, sizeof *times, by_size);
    printf("{\"rate\": %.2f, \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"max_ms\": %.3f, "
           "\"client_cpu\": %.4f, \"counted\": %lu, \"ended\": %lu}\n",
           (double)counted / seconds, share(0.5), share(0.99), share(1.0), cpu / seconds, counted,
           ended);
    fflush(stdout);
    times_count = 0;
    counted = 0;
}

int main(int argc, char **argv)
{
    if (argc != 8)
        fail("PORT CONNECTIONS WINDOW WARM SECONDS RATE EVERY < script");
    int port = atoi(argv[1]), connections = atoi(argv[2]);
    double warm = atof(argv[4]), seconds = atof(argv[5]), rate = atof(argv[6]);
    double every = atof(argv[7]);
    window = atoi(argv[3]);
    if (connections < 1 || window < 1 || window > WINDOW_MAX)
        fail("at least one connection, and a window of 1 to %d", WINDOW_MAX);
    read_script();
    /* Ten digits without a zero in front, and of this run: a server that still holds another's must
     * not know them. */
    next_number = ((uint64_t)getpid() % 8000 + 1000) * 1000000;
    struct connection *all = calloc((size_t)connections, sizeof *all);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (all == NULL || epoll < 0)
        fail("no memory, or no epoll");
    for (int place = 0; place < connections; place++) {
        struct connection *one = &all[place];
        one->place = place;
        connect_to(one, port);
        fcntl(one->fd, F_SETFL, O_NONBLOCK);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = one};
        epoll_ctl(epoll, EPOLL_CTL_ADD, one->fd, &event);
    }

    double started = now_s(), opens = started + warm, closes = opens + seconds;
    double reported = opens, cpu_at = -1, now = started;
    uint64_t due_count = 0;
    int turn = 0, closed = 0;
    if (rate <= 0)
        for (int place = 0; place < connections; place++) {
            for (int count = 0; count < window; count++)
                begin(&all[place], started);
            flush(&all[place], epoll);
        }
    while (now < closes || begun > ended) {
        struct epoll_event events[EVENTS_MAX];
        int count = epoll_wait(epoll, events, EVENTS_MAX, rate > 0 ? 1 : STALL_MS);
        if (count < 0 && errno != EINTR)
            fail("epoll: %s", strerror(errno));
        if (count == 0 && rate <= 0)
            fail("%lu operations without a reply for %d s", begun - ended, STALL_MS / 1000);
        now = now_s();
        if (cpu_at < 0 && now >= opens)
            cpu_at = cpu_s();
        for (int place = 0; place < count; place++) {
            struct connection *one = events[place].data.ptr;
            if (events[place].events & EPOLLIN) {
                ssize_t got = recv(one->fd, one->input + one->input_size,
                                   INPUT_BYTES - one->input_size, 0);
                if (got == 0 || (got < 0 && errno != EAGAIN))
                    fail("connection %d was closed: %s", one->place, got ? strerror(errno) : "end");
                one->input_size += got > 0 ? (size_t)got : 0;
                char *line = one->input, *rest = one->input + one->input_size, *end;
                while ((end = memchr(line, '\n', (size_t)(rest - line))) != NULL) {
                    size_t size = (size_t)(end - line);
                    if (size && line[size - 1] == '\r')
                        size--;
                    double began = one->ring[one->first].began;
                    if (take(one, line, size)) {
                        ended++;
                        if (now >= opens && now < closes) {
                            counted++;
                            keep_time(now - began);
                        }
                        if (rate <= 0 && now < closes)
                            begin(one, now);
                    }
                    line = end + 1;
                }
                one->input_size = (size_t)(rest - line);
                memmove(one->input, line, one->input_size);
                if (one->input_size == INPUT_BYTES)
                    fail("connection %d: a line of more than %d bytes", one->place, INPUT_BYTES);
            }
            flush(one, epoll);
        }
        if (rate > 0 && now < closes) {
            /* An operation that finds every connection busy is begun late, and its time says so. */
            for (int tried = 0; tried < connections; tried++) {
                double due = started + (double)due_count / rate;
                if (due > now)
                    break;
                struct connection *one = &all[turn++ % connections];
                if (one->under_way == window)
                    continue;
                begin(one, due);
                due_count++;
                flush(one, epoll);
            }
        }
        if (rate > 0 && now > closes + STALL_MS / 1e3)
            fail("%lu operations without a reply for %d s", begun - ended, STALL_MS / 1000);
        if (every > 0 && now >= reported + every && now < closes) {
            report(now - reported, cpu_s() - cpu_at);
            cpu_at = cpu_s();
            reported = now;
        }
        if (now >= closes && !closed) {
            /* What comes home from here on is counted in "ended" alone. */
            report(closes - reported, cpu_s() - cpu_at);
            closed = 1;
        }
    }
    printf("{\"ended\": %lu}\n", ended);
    return 0;
}
