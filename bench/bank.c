/* A bank that answers at once: the front end of Ping An's B2Bi on loopback, as little of it as a
 * balance needs. Answers S001 (the heartbeat) and 4001 (a balance) of any account, echoes the header
 * with its seq, signs nothing, keeps nothing, checks nothing. Prints its port; ends with its stdin.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    HEADER_BYTES = 222,
    BODY_LEN_AT = 30, BODY_LEN_BYTES = 10,
    TRADE_AT = 40, TRADE_BYTES = 4,
    SERV_TYPE_AT = 51,
    RET_CODE_AT = 87, RET_MSG_AT = 93, RET_MSG_BYTES = 100,
    SIGN_LEN_AT = 211, SIGN_LEN_BYTES = 10,
    BUFFER_BYTES = 1 << 20,
    EVENTS_MAX = 16,
};

#define DECLARATION "<?xml version=\"1.0\" encoding=\"GBK\" ?>"
#define DONE ":\xbd\xbb\xd2\xd7\xca\xdc\xc0\xed\xb3\xc9\xb9\xa6" /* 交易受理成功 in GBK */
#define NAME "\xbd\xad\xb7\xe3\xd1\xf9\xc0\xfd\xd6\xc6\xd4\xec\xd3\xd0\xcf\xde\xb9\xab\xcb\xbe"
/* NAME is 江枫样例制造有限公司 in GBK: an invented firm. */

struct connection {
    int fd;
    size_t input_size, output_size;
    char input[BUFFER_BYTES], output[2 * BUFFER_BYTES];
};

static void check(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "bank: %s\n", what);
        exit(1);
    }
}

static size_t body_of(const char *trade, const char *body, size_t size, char *to, size_t room)
{
    const char open[] = "<Account>", close[] = "</Account>";
    const char *from, *end;
    if (memcmp(trade, "S001", TRADE_BYTES) == 0)
        return (size_t)snprintf(to, room, DECLARATION "<Result><Desc>hostNo[7]</Desc></Result>");
    check(memcmp(trade, "4001", TRADE_BYTES) == 0, "only S001 and 4001 are answered here");
    from = memmem(body, size, open, strlen(open));
    check(from != NULL, "a 4001 without an account");
    from += strlen(open);
    end = memmem(from, size - (size_t)(from - body), close, strlen(close));
    check(end != NULL, "a 4001 without an account");
    return (size_t)snprintf(
        to, room,
        DECLARATION "<Result><Account>%.*s</Account><CcyCode>RMB</CcyCode><CcyType></CcyType>"
                    "<AccountName>" NAME "</AccountName><Balance>1250000.37</Balance>"
                    "<TotalAmount>1250000.37</TotalAmount><AccountType></AccountType>"
                    "<AccountStatus>A</AccountStatus><BankName></BankName>"
                    "<LastBalance>1250000.37</LastBalance><HoldBalance>0.00</HoldBalance></Result>",
        (int)(end - from), from);
}

static void answer(struct connection *one, const char *packet, size_t body_size)
{
    char *header = one->output + one->output_size, digits[32];
    size_t room = sizeof one->output - one->output_size - HEADER_BYTES;
    size_t size = body_of(packet + TRADE_AT, packet + HEADER_BYTES, body_size,
                          header + HEADER_BYTES, room);
    check(size < room, "nobody reads the answers");
    memcpy(header, packet, HEADER_BYTES);
    snprintf(digits, sizeof digits, "%010zu", size);
    memcpy(header + BODY_LEN_AT, digits, BODY_LEN_BYTES);
    memcpy(header + SERV_TYPE_AT, "02", 2);
    memcpy(header + RET_CODE_AT, "000000", 6);
    memset(header + RET_MSG_AT, ' ', RET_MSG_BYTES);
    memcpy(header + RET_MSG_AT, DONE, strlen(DONE));
    memcpy(header + SIGN_LEN_AT, "0         ", SIGN_LEN_BYTES);
    one->output_size += HEADER_BYTES + size;
}

static size_t number(const char *cell, size_t size)
{
    char text[32] = {0};
    memcpy(text, cell, size);
    return strtoul(text, NULL, 10);
}

/* Return 0 when the peer has gone. */
static int serve(struct connection *one)
{
    ssize_t got = recv(one->fd, one->input + one->input_size, BUFFER_BYTES - one->input_size, 0);
    size_t at = 0;
    if (got <= 0)
        return 0;
    one->input_size += (size_t)got;
    while (one->input_size - at >= HEADER_BYTES) {
        const char *packet = one->input + at;
        size_t body_size = number(packet + BODY_LEN_AT, BODY_LEN_BYTES);
        size_t all = HEADER_BYTES + body_size + number(packet + SIGN_LEN_AT, SIGN_LEN_BYTES);
        check(memcmp(packet, "A001", 4) == 0 && all < BUFFER_BYTES, "this is not B2Bi");
        if (one->input_size - at < all)
            break;
        answer(one, packet, body_size);
        at += all;
    }
    one->input_size -= at;
    memmove(one->input, one->input + at, one->input_size);
    for (size_t sent = 0; sent < one->output_size;) {
        ssize_t count = send(one->fd, one->output + sent, one->output_size - sent, MSG_NOSIGNAL);
        if (count <= 0)
            return 0;
        sent += (size_t)count;
    }
    one->output_size = 0;
    return 1;
}

int main(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t size = sizeof at;
    int yes = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    check(listener >= 0 && bind(listener, (struct sockaddr *)&at, sizeof at) == 0, "bind");
    check(listen(listener, 16) == 0, "listen");
    check(getsockname(listener, (struct sockaddr *)&at, &size) == 0, "getsockname");
    printf("%d\n", ntohs(at.sin_port));
    fflush(stdout);
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    event.data.ptr = &event;
    check(epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event) == 0, "stdin must be a pipe");
    for (;;) {
        struct epoll_event events[EVENTS_MAX];
        int count = epoll_wait(epoll, events, EVENTS_MAX, -1);
        for (int place = 0; place < count; place++) {
            struct connection *one = events[place].data.ptr;
            if (one == (void *)&event)
                return 0;
            if (one == NULL) {
                one = calloc(1, sizeof *one);
                check(one != NULL, "no memory");
                one->fd = accept(listener, NULL, NULL);
                setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
                struct epoll_event fresh = {.events = EPOLLIN, .data.ptr = one};
                epoll_ctl(epoll, EPOLL_CTL_ADD, one->fd, &fresh);
            } else if (!serve(one)) {
                close(one->fd);
                free(one);
            }
        }
    }
}
