# What to run: `make demo`, `make test`, `make help`.
.DEFAULT_GOAL := help
SHELL := /bin/bash

# The lab's workload clusters; the management cluster is always `mgmt`.
CLUSTERS ?= cluster1 cluster2
MESH     ?= deploy/examples/mesh.yaml
# Where the lab keeps its state.
LAB      ?= .lab

.PHONY: help bin demo lab servers down clean doctor test check soak bench weather histories

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

bin: ## build bin/relaypki, bin/relaypki-worker and bin/lab
	@echo "building bin/relaypki, bin/relaypki-worker, bin/lab (minutes the first time, seconds after)"
	@mkdir -p bin
	@go build -buildvcs=false -o bin/lab ./deploy/lab
	@go build -buildvcs=false -o bin/relaypki ./starter
	@go build -buildvcs=false -o bin/relaypki-worker ./worker

demo: bin ## bring up the lab, set up the mesh of $(MESH) and prove that it works
	@deploy/lab/demo.sh "$(LAB)" "$(CLUSTERS)" "$(MESH)"

lab: bin ## bring up the lab alone: make lab CLUSTERS="cluster1 cluster2"
	@bin/lab up --dir "$(LAB)" --clusters "$(CLUSTERS)"
	@ln -sfn "$(CURDIR)/bin/relaypki" "$(LAB)/bin/relaypki"

servers: ## build the lab's servers and start nothing
	@go run ./deploy/lab build

down: bin/lab ## stop the lab; its state stays in .lab
	@bin/lab down --dir "$(LAB)"

clean: bin/lab ## stop the lab and forget its state
	@bin/lab clean --dir "$(LAB)"

doctor: bin/lab ## say what is there, what would be built and what that costs
	@bin/lab doctor

bin/lab:
	@echo "building bin/lab (minutes the first time, seconds after)"
	@mkdir -p bin
	@go build -buildvcs=false -o bin/lab ./deploy/lab

test: check ## run every check and test, on real servers
	@test/run.sh

soak: servers ## kill the worker at every boundary of a setup, a removal, an addition and a rotation, take all away from rotations, rotate the root ten times, and try every emergency: about three hours
	go test -count=1 -timeout 60m ./internal/rotation -args -soak
	go test -count=1 -timeout 600m -v ./test/e2e -run 'TestKilledWorker|TestRotation|TestRotateRoot$$|TestRootRotation|TestEmergency' -args -soak

check: ## formatting, vet, staticcheck, workflowcheck, in every module
	@test/check.sh

bench: bin ## measure what a setup and rotations take and cost, on a lab of its own: about three quarters of an hour
	@go build -buildvcs=false -o bin/bench ./test/bench
	@go build -buildvcs=false -o bin/bench-waiter ./test/bench/waiter
	@bin/bench -out README.md

weather: ## make every kind of bad weather on a lab and write what the operator sees into docs/weather.md
	go test -count=1 -timeout 30m -v ./test/e2e -run 'TestWeather$$' -args -record

histories: ## record the histories of the replay tests anew
	go test -count=1 -timeout 30m ./test/e2e -run 'TestHistories|TestRotateIntermediate$$|TestRotateRoot$$|TestEmergencyReissue$$' -args -record
