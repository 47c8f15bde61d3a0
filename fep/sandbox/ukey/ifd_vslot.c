/*
 * ifd_vslot - a PC/SC reader driver whose cards are connections to a Unix socket.
 *
 * pcscd loads it as IFD handler 3.0 (pcsc-lite's <ifdhandler.h>). Each entry of reader.conf
 *
 *     DEVICENAME /some/folder:NN
 *
 * is a reader with one slot that listens on /some/folder/NN.sock. A program that connects is a
 * card being put in; closing the connection pulls it out. The framing is that of vsmartcard's
 * vpcd: every message is a big-endian 16-bit length and that many bytes. The driver sends
 *
 *     00 power off | 01 power on | 02 reset      no answer to these three
 *     04 ATR wanted                              answer: the ATR; empty = a mute card
 *     05 pcscd has published the card            no answer; once per card, not in vpcd
 *     two bytes or more: a command APDU          answer: the response APDU
 *
 * Unlike vpcd it does not poll: pcscd's thread sleeps until a card comes, goes, or pcscd stops.
 *
 * The removal latch. pcscd's thread for a reader loops over "ask for presence, report a change,
 * wait in polling()". But powering an unused card down before the next round, or a new card up
 * after reporting it, asks for presence too and throws the answer away. Were the next waiting
 * card accepted at once, pcscd could miss that the first one ever left, and a card pulled during
 * its power-up would be shown for ever. So a slot that has lost its card stays empty until
 * polling() has been called twice: between the two calls lies one whole round of the loop, whose
 * first question was answered "absent". Hundreds of immediate exchanges lose nothing
 * (tests/sandbox/ukey).
 *
 * The file NN.gone beside a socket makes its reader act as if its device had been unplugged.
 *
 * FEP_VSLOT_LIFELINE_FD names an open pipe. When its other end closes, the whole pcscd process
 * ends: a private pcscd must not outlive the test that started it, however that test died.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <ifdhandler.h>
#include <poll.h>
#include <pthread.h>
#include <reader.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>
#include <wintypes.h>

enum {
	SLOTS_MAX = 64,         /* pcscd before 2.5.0 stops at 16 readers itself */
	LISTEN_BACKLOG = 8,     /* cards that may wait in front of one slot */
	FRAME_BYTES_MAX = 0xFFFF,
	GAP_ROUNDS = 2,         /* see the removal latch above */
	ATR_TIMEOUT_SECONDS = 2 /* a card that never answers may not hold pcscd's thread for ever */
};

/* First byte of the one-byte messages. */
enum {
	LINK_POWER_OFF = 0,
	LINK_POWER_ON = 1,
	LINK_RESET = 2,
	LINK_GET_ATR = 4,
	LINK_PUBLISHED = 5
};

struct slot {
	bool used;
	pthread_mutex_t mutex; /* guards all below but `wake`, which is only written to and drained */
	int listener;
	int card; /* -1 = none */
	int wake; /* eventfd that ends a wait in polling() */
	int gap_rounds; /* calls of polling() until the next card may come in */
	bool published; /* the card has been told that pcscd has reported it */
	bool poller_known;
	pthread_t poller; /* pcscd's event thread of this reader */
	UCHAR atr[MAX_ATR_SIZE];
	DWORD atr_length;
	char socket_path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	char gone_path[sizeof(((struct sockaddr_un *)0)->sun_path)];
};

static struct slot slots[SLOTS_MAX];
static pthread_once_t lifeline_once = PTHREAD_ONCE_INIT;

/* Return the slot of a logical unit number (reader index << 16 | slot), NULL if not open. */
static struct slot *slot_of(DWORD lun)
{
	DWORD index = (lun >> 16) & 0xFFFF;

	if (index >= SLOTS_MAX || (lun & 0xFFFF) != 0 || !slots[index].used)
		return NULL;
	return &slots[index];
}

static bool is_gone(const struct slot *slot)
{
	return access(slot->gone_path, F_OK) == 0;
}

static void wake_poller(struct slot *slot)
{
	const uint64_t one = 1;
	ssize_t written = write(slot->wake, &one, sizeof one);

	(void)written; /* EAGAIN means a wake-up is pending already */
}

static bool is_poller(const struct slot *slot)
{
	return slot->poller_known && pthread_equal(slot->poller, pthread_self());
}

static bool has_hung_up(int fd)
{
	struct pollfd probe = {.fd = fd, .events = POLLRDHUP};

	return poll(&probe, 1, 0) > 0
	       && (probe.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) != 0;
}

/* Forget the card. Call with the mutex held. */
static void drop_card(struct slot *slot)
{
	close(slot->card);
	slot->card = -1;
	slot->atr_length = 0;
	slot->published = false;
	slot->gap_rounds = GAP_ROUNDS;
	/* The poller may be waiting on the number just closed, which the next accept may reuse. */
	if (!is_poller(slot))
		wake_poller(slot);
}

/* Send one frame in a single segment; two would make the card read twice. */
static bool send_frame(int fd, const UCHAR *payload, DWORD length)
{
	UCHAR header[2] = {(UCHAR)(length >> 8), (UCHAR)length};
	struct iovec parts[2] = {{header, sizeof header}, {(void *)(uintptr_t)payload, length}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
	size_t left = sizeof header + length;

	while (left > 0) {
		ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent <= 0)
			return false;
		left -= (size_t)sent;
		for (size_t skip = (size_t)sent; skip > 0;) {
			size_t step = skip < message.msg_iov->iov_len ? skip : message.msg_iov->iov_len;
			message.msg_iov->iov_base = (UCHAR *)message.msg_iov->iov_base + step;
			message.msg_iov->iov_len -= step;
			skip -= step;
			if (message.msg_iov->iov_len == 0 && message.msg_iovlen > 1) {
				message.msg_iov++;
				message.msg_iovlen--;
			}
		}
	}
	return true;
}

/* Read exactly `length` bytes; false at end of file, error or receive timeout. */
static bool receive_exactly(int fd, UCHAR *buffer, size_t length)
{
	size_t done = 0;

	while (done < length) {
		ssize_t got = recv(fd, buffer + done, length - done, MSG_WAITALL);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return false;
		done += (size_t)got;
	}
	return true;
}

/* Receive one frame into `buffer`; false if it is empty or longer than `size`. */
static bool receive_frame(int fd, UCHAR *buffer, DWORD size, DWORD *length)
{
	UCHAR header[2];

	if (!receive_exactly(fd, header, sizeof header))
		return false;
	*length = ((DWORD)header[0] << 8) | header[1];
	return *length > 0 && *length <= size && receive_exactly(fd, buffer, *length);
}

static void set_receive_timeout(int fd, time_t seconds)
{
	const struct timeval limit = {.tv_sec = seconds}; /* 0 = wait without limit */

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
}

/* Wait for the far end of the lifeline to close, then end this process without ceremony. */
static void *watch_lifeline(void *argument)
{
	int fd = (int)(intptr_t)argument;
	struct pollfd lifeline = {.fd = fd, .events = 0}; /* POLLHUP is always reported */

	while (poll(&lifeline, 1, -1) < 0 && errno == EINTR)
		;
	_exit(EXIT_SUCCESS);
}

static void start_lifeline(void)
{
	const char *text = getenv("FEP_VSLOT_LIFELINE_FD");
	sigset_t all, before;
	pthread_t thread;

	if (text == NULL)
		return;
	sigfillset(&all); /* pcscd's signals belong to pcscd's threads */
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (pthread_create(&thread, NULL, watch_lifeline, (void *)(intptr_t)atoi(text)) == 0)
		pthread_detach(thread);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Bind the slot's socket; -1 on failure. A socket file left by a killed pcscd is replaced. */
static int open_listener(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -1;
	memcpy(address.sun_path, path, strlen(path) + 1);
	unlink(path);
	if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0
	    || listen(fd, LISTEN_BACKLOG) != 0) {
		close(fd);
		return -1;
	}
	return fd;
}

static bool format_path(char *target, size_t size, const char *device, const char *suffix)
{
	const char *colon = strrchr(device, ':');

	if (colon == NULL)
		return false;
	int length = snprintf(target, size, "%.*s/%s%s", (int)(colon - device), device, colon + 1, suffix);
	return length > 0 && (size_t)length < size;
}

RESPONSECODE IFDHCreateChannelByName(DWORD lun, LPSTR device)
{
	DWORD index = (lun >> 16) & 0xFFFF;

	pthread_once(&lifeline_once, start_lifeline);
	if (index >= SLOTS_MAX || (lun & 0xFFFF) != 0 || slots[index].used)
		return IFD_COMMUNICATION_ERROR;
	struct slot *slot = &slots[index];
	memset(slot, 0, sizeof *slot);
	if (!format_path(slot->socket_path, sizeof slot->socket_path, device, ".sock")
	    || !format_path(slot->gone_path, sizeof slot->gone_path, device, ".gone"))
		return IFD_COMMUNICATION_ERROR;
	if (is_gone(slot))
		return IFD_NO_SUCH_DEVICE;
	slot->card = -1;
	slot->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (slot->wake < 0)
		return IFD_COMMUNICATION_ERROR;
	slot->listener = open_listener(slot->socket_path);
	if (slot->listener < 0) {
		close(slot->wake);
		return IFD_COMMUNICATION_ERROR;
	}
	pthread_mutex_init(&slot->mutex, NULL);
	slot->used = true;
	return IFD_SUCCESS;
}

/* Readers have names here; the numbered channels of old serial readers do not exist. */
RESPONSECODE IFDHCreateChannel(DWORD lun, DWORD channel)
{
	(void)lun;
	(void)channel;
	return IFD_NOT_SUPPORTED;
}

RESPONSECODE IFDHCloseChannel(DWORD lun)
{
	struct slot *slot = slot_of(lun);

	if (slot == NULL)
		return IFD_NO_SUCH_DEVICE;
	pthread_mutex_lock(&slot->mutex);
	if (slot->card >= 0)
		close(slot->card);
	close(slot->listener);
	unlink(slot->socket_path);
	slot->used = false;
	pthread_mutex_unlock(&slot->mutex);
	close(slot->wake);
	pthread_mutex_destroy(&slot->mutex);
	return IFD_SUCCESS;
}

RESPONSECODE IFDHICCPresence(DWORD lun)
{
	struct slot *slot = slot_of(lun);

	if (slot == NULL || is_gone(slot))
		return IFD_NO_SUCH_DEVICE;
	pthread_mutex_lock(&slot->mutex);
	if (slot->card >= 0 && has_hung_up(slot->card))
		drop_card(slot);
	/* Only the poller lets a card in: taken by another thread, the card would be missed by the
	 * poller, whose wait on the listener would see nothing left to accept. */
	else if (slot->card < 0 && slot->gap_rounds == 0 && is_poller(slot))
		slot->card = accept4(slot->listener, NULL, NULL, SOCK_CLOEXEC);
	bool present = slot->card >= 0;
	pthread_mutex_unlock(&slot->mutex);
	return present ? IFD_ICC_PRESENT : IFD_ICC_NOT_PRESENT;
}

/* TAG_IFD_POLLING_THREAD_WITH_TIMEOUT: wait until presence is worth asking for again. */
static RESPONSECODE polling(DWORD lun, int timeout_ms)
{
	struct slot *slot = slot_of(lun);

	if (slot == NULL)
		return IFD_NO_SUCH_DEVICE;
	pthread_mutex_lock(&slot->mutex);
	slot->poller = pthread_self();
	slot->poller_known = true;
	if (slot->gap_rounds > 0 && --slot->gap_rounds > 0) {
		pthread_mutex_unlock(&slot->mutex);
		return IFD_SUCCESS;
	}
	/* The poller waits again only after it has shown its clients what presence told it. */
	if (slot->card >= 0 && !slot->published) {
		const UCHAR published = LINK_PUBLISHED;
		slot->published = send_frame(slot->card, &published, 1);
	}
	struct pollfd events[2] = {
		{.fd = slot->wake, .events = POLLIN},
		{.fd = slot->card >= 0 ? slot->card : slot->listener,
		 .events = slot->card >= 0 ? POLLRDHUP : POLLIN},
	};
	pthread_mutex_unlock(&slot->mutex);

	poll(events, 2, timeout_ms);
	uint64_t count;
	ssize_t drained = read(slot->wake, &count, sizeof count);
	(void)drained; /* EAGAIN: it was the card, the listener or the timeout */
	return IFD_SUCCESS;
}

/* TAG_IFD_STOP_POLLING_THREAD: end a wait in polling(), now or the next one. */
static RESPONSECODE stop_polling(DWORD lun)
{
	struct slot *slot = slot_of(lun);

	if (slot == NULL)
		return IFD_NO_SUCH_DEVICE;
	wake_poller(slot);
	return IFD_SUCCESS;
}

static RESPONSECODE give(const void *source, DWORD size, PDWORD length, PUCHAR value)
{
	if (*length < size)
		return IFD_ERROR_INSUFFICIENT_BUFFER;
	memcpy(value, source, size);
	*length = size;
	return IFD_SUCCESS;
}

static RESPONSECODE give_byte(UCHAR byte, PDWORD length, PUCHAR value)
{
	return give(&byte, sizeof byte, length, value);
}

RESPONSECODE IFDHGetCapabilities(DWORD lun, DWORD tag, PDWORD length, PUCHAR value)
{
	RESPONSECODE (*const poll_function)(DWORD, int) = polling;
	RESPONSECODE (*const stop_function)(DWORD) = stop_polling;
	struct slot *slot;
	RESPONSECODE code;

	switch (tag) {
	case TAG_IFD_ATR:
	case SCARD_ATTR_ATR_STRING:
		slot = slot_of(lun);
		if (slot == NULL)
			return IFD_NO_SUCH_DEVICE;
		pthread_mutex_lock(&slot->mutex);
		code = give(slot->atr, slot->atr_length, length, value);
		pthread_mutex_unlock(&slot->mutex);
		return code;
	case TAG_IFD_SIMULTANEOUS_ACCESS:
		return give_byte(SLOTS_MAX, length, value);
	case TAG_IFD_SLOTS_NUMBER:
		return give_byte(1, length, value);
	case TAG_IFD_THREAD_SAFE: /* else one mutex serves all readers, and a slow card stops all */
	case TAG_IFD_SLOT_THREAD_SAFE:
		return give_byte(1, length, value);
	case TAG_IFD_POLLING_THREAD_KILLABLE:
		return give_byte(0, length, value);
	case TAG_IFD_POLLING_THREAD_WITH_TIMEOUT:
		return give(&poll_function, sizeof poll_function, length, value);
	case TAG_IFD_STOP_POLLING_THREAD:
		return give(&stop_function, sizeof stop_function, length, value);
	default:
		return IFD_ERROR_TAG;
	}
}

RESPONSECODE IFDHSetCapabilities(DWORD lun, DWORD tag, DWORD length, PUCHAR value)
{
	(void)lun;
	(void)tag;
	(void)length;
	(void)value;
	return IFD_NOT_SUPPORTED;
}

/* A socket has no bit rate to negotiate: every proposal is fine. */
RESPONSECODE IFDHSetProtocolParameters(DWORD lun, DWORD protocol, UCHAR flags, UCHAR pts1,
				       UCHAR pts2, UCHAR pts3)
{
	(void)lun;
	(void)protocol;
	(void)flags;
	(void)pts1;
	(void)pts2;
	(void)pts3;
	return IFD_SUCCESS;
}

/* Power the card up (or reset it) and read its ATR. Call with the mutex held. */
static RESPONSECODE power_up(struct slot *slot, UCHAR command)
{
	const UCHAR get_atr = LINK_GET_ATR;

	slot->atr_length = 0;
	if (slot->card < 0)
		return IFD_ERROR_POWER_ACTION;
	set_receive_timeout(slot->card, ATR_TIMEOUT_SECONDS);
	DWORD length = 0;
	bool answered = send_frame(slot->card, &command, 1) && send_frame(slot->card, &get_atr, 1)
			&& receive_frame(slot->card, slot->atr, sizeof slot->atr, &length);
	set_receive_timeout(slot->card, 0);
	if (!answered)
		return IFD_ERROR_POWER_ACTION;
	slot->atr_length = length;
	return IFD_SUCCESS;
}

RESPONSECODE IFDHPowerICC(DWORD lun, DWORD action, PUCHAR atr, PDWORD atr_length)
{
	struct slot *slot = slot_of(lun);
	const UCHAR power_off = LINK_POWER_OFF;
	RESPONSECODE code = IFD_SUCCESS;

	*atr_length = 0;
	if (slot == NULL || is_gone(slot))
		return IFD_NO_SUCH_DEVICE;
	pthread_mutex_lock(&slot->mutex);
	switch (action) {
	case IFD_POWER_DOWN:
		slot->atr_length = 0;
		if (slot->card >= 0)
			send_frame(slot->card, &power_off, 1); /* a lost card shows in presence */
		break;
	case IFD_POWER_UP:
	case IFD_RESET:
		code = power_up(slot, action == IFD_RESET ? LINK_RESET : LINK_POWER_ON);
		memcpy(atr, slot->atr, slot->atr_length);
		*atr_length = slot->atr_length;
		break;
	default:
		code = IFD_NOT_SUPPORTED;
	}
	pthread_mutex_unlock(&slot->mutex);
	return code;
}

RESPONSECODE IFDHTransmitToICC(DWORD lun, SCARD_IO_HEADER send_header, PUCHAR command,
			       DWORD command_length, PUCHAR response, PDWORD response_length,
			       PSCARD_IO_HEADER receive_header)
{
	struct slot *slot = slot_of(lun);
	const DWORD size = *response_length;
	DWORD length = 0;

	(void)send_header;
	*response_length = 0;
	if (slot == NULL || is_gone(slot))
		return IFD_NO_SUCH_DEVICE;
	/* One byte would be read as a power command. */
	if (command_length < 2 || command_length > FRAME_BYTES_MAX)
		return IFD_COMMUNICATION_ERROR;
	pthread_mutex_lock(&slot->mutex);
	bool answered = slot->card >= 0 && send_frame(slot->card, command, command_length)
			&& receive_frame(slot->card, response, size, &length);
	pthread_mutex_unlock(&slot->mutex);
	if (!answered) /* leave the card to presence, so that the latch sees it go */
		return IFD_COMMUNICATION_ERROR;
	*response_length = length;
	if (receive_header != NULL)
		receive_header->Protocol = 1; /* T=1, the only protocol the cards' ATR offers */
	return IFD_SUCCESS;
}

RESPONSECODE IFDHControl(DWORD lun, DWORD code, PUCHAR input, DWORD input_length, PUCHAR output,
			 DWORD output_size, LPDWORD returned)
{
	(void)lun;
	(void)code;
	(void)input;
	(void)input_length;
	(void)output;
	(void)output_size;
	*returned = 0;
	return IFD_ERROR_NOT_SUPPORTED;
}
