# ingestd: see `make help`.

PREFIX ?= /usr/local
CC ?= cc
CFLAGS ?= -O2 -g
LDFLAGS ?=
SANITIZE ?=
FAILPOINTS ?=
MQTT_SOCKET_BUFFER ?= 1
comma := ,

BUILD := build$(if $(SANITIZE),-$(subst $(comma),-,$(SANITIZE)))$(if $(FAILPOINTS),.failpoints)$(if $(filter 0,$(MQTT_SOCKET_BUFFER)),.unbuffered)
VERSION := 0.1.0

WARN := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith
ALL_CFLAGS := -std=gnu17 $(WARN) -MMD -MP -D_GNU_SOURCE -DVERSION='"$(VERSION)"' -Icommon \
    -Isupervisor -Iworker -I/usr/include/postgresql \
    $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer) \
    $(if $(FAILPOINTS),-DFAILPOINTS) -DMQTT_SOCKET_BUFFER=$(MQTT_SOCKET_BUFFER) $(CFLAGS)
ALL_LDFLAGS := $(if $(SANITIZE),-fsanitize=$(SANITIZE)) -Wl,--as-needed $(LDFLAGS)

SUPERVISOR_LIBS := -lmosquitto -lmsgpackc -lxxhash -luuid -lssl -lsqlite3 -lbsd
WORKER_LIBS := -lpq -lmsgpackc -ljson-c -lbsd

objects = $(patsubst %.c,$(BUILD)/%.o,$(wildcard $(1)/*.c))
COMMON := $(call objects,common)
SUPERVISOR := $(call objects,supervisor)
WORKER := $(call objects,worker)
UNIT_TESTS := $(patsubst tests/unit/%.c,$(BUILD)/unit/%,$(wildcard tests/unit/test_*.c))
SOURCES := $(wildcard common/*.[ch] supervisor/*.[ch] worker/*.[ch] tests/unit/*.[ch])

all: $(BUILD)/ingestd $(BUILD)/ingestd-writer ## build both programs into build/

$(BUILD)/ingestd: $(SUPERVISOR) $(COMMON)
	$(CC) $(ALL_CFLAGS) -o $@ $^ $(ALL_LDFLAGS) $(SUPERVISOR_LIBS)

$(BUILD)/ingestd-writer: $(WORKER) $(COMMON)
	$(CC) $(ALL_CFLAGS) -o $@ $^ $(ALL_LDFLAGS) $(WORKER_LIBS)

$(BUILD)/unit/%: tests/unit/%.c $(filter-out %/main.o,$(SUPERVISOR) $(WORKER)) $(COMMON)
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -MF $@.d -o $@ $(filter %.c %.o,$^) $(ALL_LDFLAGS) $(SUPERVISOR_LIBS) \
	    $(WORKER_LIBS) -lcmocka

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -c -o $@ $<

programs-for-tests: all $(UNIT_TESTS) $(BUILD)/unit/payload_verdict

check: ## install what is missing, build, run all tests
	tests/install-dependencies check
	$(MAKE) programs-for-tests
	$(if $(SANITIZE),,$(MAKE) FAILPOINTS=1 all)
	$(if $(SANITIZE),,$(MAKE) MQTT_SOCKET_BUFFER=0 all)
	BUILD=$(BUILD) tests/run

demo: ## install what is missing, build, show ingestd at work on private servers
	@tests/install-dependencies demo
	@$(MAKE) -s --no-print-directory all
	@BUILD=$(BUILD) tests/demo

bench: ## install what is missing, build, measure against psql's COPY
	@tests/install-dependencies bench
	@$(MAKE) -s --no-print-directory all
	@BUILD=$(BUILD) tests/bench/run

bench-smoke: ## the same in a few seconds, to see that it runs: the numbers mean nothing
	@BENCH_SMOKE=1 BENCH_PLOT=1 $(MAKE) -s --no-print-directory bench

faults: ## install what is missing, build, run random faults (RUNS SEED RATE SYSTEM FAULT JOBS)
	@tests/install-dependencies check
	@$(MAKE) -s --no-print-directory all
	@BUILD=$(BUILD) tests/faults/run

install: all ## copy programs and manuals below DESTDIR and PREFIX
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/libexec/ingestd \
	    $(DESTDIR)$(PREFIX)/share/man/man7 $(DESTDIR)$(PREFIX)/share/man/man8
	install -m 755 $(BUILD)/ingestd $(DESTDIR)$(PREFIX)/bin/
	install -m 755 $(BUILD)/ingestd-writer $(DESTDIR)$(PREFIX)/libexec/ingestd/
	install -m 644 man/ingestd-protocol.7 $(DESTDIR)$(PREFIX)/share/man/man7/
	install -m 644 man/ingestd.8 man/ingestd-dead-letters.8 $(DESTDIR)$(PREFIX)/share/man/man8/

uninstall: ## remove what install has copied
	rm -rf $(DESTDIR)$(PREFIX)/bin/ingestd $(DESTDIR)$(PREFIX)/libexec/ingestd \
	    $(DESTDIR)$(PREFIX)/share/man/man7/ingestd-protocol.7 $(DESTDIR)$(PREFIX)/share/man/man8/ingestd.8 \
	    $(DESTDIR)$(PREFIX)/share/man/man8/ingestd-dead-letters.8

format: ## bring the sources into the project's format
	clang-format -i $(SOURCES)

clean: ## remove what was built
	rm -rf build build-* build.*

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile | expand -t 12

.PHONY: all check demo bench bench-smoke faults install uninstall format clean help programs-for-tests
.SECONDARY:
-include $(wildcard $(BUILD)/*/*.d)
