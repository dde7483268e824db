// Command lab-temporal is the lab's Temporal: all services of the real server
// and its web UI in one process, with one SQLite file as the only state. It
// stays in the foreground until SIGTERM or SIGINT; histories, schedules and
// search attributes survive a restart.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	uiserver "github.com/temporalio/ui-server/v2/server"
	uiconfig "github.com/temporalio/ui-server/v2/server/config"
	uioptions "github.com/temporalio/ui-server/v2/server/server_options"
	"go.temporal.io/server/common/cluster"
	"go.temporal.io/server/common/config"
	"go.temporal.io/server/common/dynamicconfig"
	"go.temporal.io/server/common/log"
	"go.temporal.io/server/common/membership/static"
	sqliteplugin "go.temporal.io/server/common/persistence/sql/sqlplugin/sqlite"
	"go.temporal.io/server/common/primitives"
	"go.temporal.io/server/schema/sqlite"
	"go.temporal.io/server/temporal"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	namespace = "default"
	// retention is how long a closed workflow can still be looked at.
	retention = 7 * 24 * time.Hour
	// clusterName is stored in the database: a database cannot be moved to another name.
	clusterName = "active"
	storeName   = "sqlite"
	loopback    = "127.0.0.1"
)

type options struct {
	dir          string
	ip           string
	frontendPort int
	uiPort       int
	httpPort     int
}

func main() {
	var o options
	flag.StringVar(&o.dir, "dir", "", "directory of the database file (required)")
	flag.StringVar(&o.ip, "ip", loopback, "address that frontend and UI listen on")
	flag.IntVar(&o.frontendPort, "frontend-port", 7233, "gRPC port of the frontend")
	flag.IntVar(&o.uiPort, "ui-port", 8233, "HTTP port of the UI")
	flag.IntVar(&o.httpPort, "http-port", 0, "port of the frontend's HTTP API; 0: none")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "lab-temporal:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	if o.dir == "" {
		return errors.New("--dir is required: the directory that keeps the database")
	}
	store := sqlStore(filepath.Join(o.dir, "temporal.db"))
	if err := prepareDatabase(store); err != nil {
		return err
	}
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	services := map[primitives.ServiceName]config.RPC{
		primitives.FrontendService: {GRPCPort: o.frontendPort, HTTPPort: o.httpPort, BindOnIP: o.ip},
		primitives.HistoryService:  {GRPCPort: ports[0], BindOnIP: loopback},
		primitives.MatchingService: {GRPCPort: ports[1], BindOnIP: loopback},
		primitives.WorkerService:   {GRPCPort: ports[2], BindOnIP: loopback},
	}
	server, err := newServer(store, services)
	if err != nil {
		return err
	}
	if err := server.Start(); err != nil {
		return fmt.Errorf("start the Temporal server: %w", err)
	}
	ui := newUI(o)
	go ui.Start() // a port that is taken ends the process with that message

	if err := awaitServing(ctx, o); err == nil {
		fmt.Printf("serving: Temporal %s, UI http://%s, namespace %s\n",
			net.JoinHostPort(o.ip, strconv.Itoa(o.frontendPort)), net.JoinHostPort(o.ip, strconv.Itoa(o.uiPort)), namespace)
	}
	<-ctx.Done()
	ui.Stop()
	return server.Stop()
}

func sqlStore(file string) *config.SQL {
	return &config.SQL{
		PluginName:   sqliteplugin.PluginName,
		DatabaseName: file,
		ConnectAttributes: map[string]string{
			"mode": "rwc",
			// With a write-ahead log, "normal" loses nothing when the process
			// dies, only when the machine does, and spares a sync per write.
			"journal_mode": "wal",
			"synchronous":  "normal",
		},
	}
}

// prepareDatabase makes the schema, when there is none yet, and the namespace.
func prepareDatabase(store *config.SQL) error {
	_, err := os.Stat(store.DatabaseName)
	if errors.Is(err, os.ErrNotExist) {
		err = createDatabase(store.DatabaseName)
	}
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	ns, err := sqlite.NewNamespaceConfig(clusterName, namespace, false, nil)
	if err != nil {
		return fmt.Errorf("describe namespace %s: %w", namespace, err)
	}
	ns.Detail.Config.Retention = durationpb.New(retention)
	if err := sqlite.CreateNamespaces(store, ns); err != nil {
		return fmt.Errorf("create namespace %s in %s: %w", namespace, store.DatabaseName, err)
	}
	return nil
}

// createDatabase gives the file its name last, so that a process that is
// killed in the middle leaves no database with half a schema behind.
func createDatabase(file string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	unfinished := file + ".new"
	if err := os.Remove(unfinished); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := sqlite.SetupSchema(&config.SQL{
		PluginName:        sqliteplugin.PluginName,
		DatabaseName:      unfinished,
		ConnectAttributes: map[string]string{"mode": "rwc", "synchronous": "off"},
	}); err != nil {
		return fmt.Errorf("set up the schema: %w", err)
	}
	return os.Rename(unfinished, file)
}

func newServer(store *config.SQL, services map[primitives.ServiceName]config.RPC) (temporal.Server, error) {
	frontend := services[primitives.FrontendService]
	frontendAddress := net.JoinHostPort(frontend.BindOnIP, strconv.Itoa(frontend.GRPCPort))
	conf := &config.Config{
		Services: map[string]config.Service{},
		Persistence: config.Persistence{
			DefaultStore:     storeName,
			VisibilityStore:  storeName,
			NumHistoryShards: 4, // stored in the database; each shard costs timers and memory
			DataStores:       map[string]config.DataStore{storeName: {SQL: store}},
		},
		ClusterMetadata: &cluster.Config{
			FailoverVersionIncrement: 10,
			MasterClusterName:        clusterName,
			CurrentClusterName:       clusterName,
			ClusterInformation: map[string]cluster.ClusterInformation{
				clusterName: {Enabled: true, InitialFailoverVersion: 1, RPCAddress: frontendAddress},
			},
		},
		DCRedirectionPolicy: config.DCRedirectionPolicy{Policy: "noop"},
		PublicClient:        config.PublicClient{HostPort: frontendAddress},
		Archival: config.Archival{
			History:    config.HistoryArchival{State: "disabled"},
			Visibility: config.VisibilityArchival{State: "disabled"},
		},
		NamespaceDefaults: config.NamespaceDefaults{Archival: config.ArchivalNamespaceDefaults{
			History:    config.HistoryArchivalNamespaceDefaults{State: "disabled"},
			Visibility: config.VisibilityArchivalNamespaceDefaults{State: "disabled"},
		}},
	}
	conf.Global.Membership = config.Membership{MaxJoinDuration: 30 * time.Second, BroadcastAddress: loopback}
	hosts := map[primitives.ServiceName]static.Hosts{}
	for name, rpc := range services {
		conf.Services[string(name)] = config.Service{RPC: rpc}
		hosts[name] = static.SingleLocalHost(net.JoinHostPort(rpc.BindOnIP, strconv.Itoa(rpc.GRPCPort)))
	}
	server, err := temporal.NewServer(
		temporal.WithConfig(conf),
		temporal.ForServices(temporal.DefaultServices),
		temporal.WithStaticHosts(hosts), // one process needs no gossip
		temporal.WithDynamicConfigClient(dynamicConfig()),
		temporal.WithLogger(log.NewZapLogger(log.BuildZapLogger(log.Config{Level: "warn", Format: "console"}))),
	)
	if err != nil {
		return nil, fmt.Errorf("set up the Temporal server: %w", err)
	}
	return server, nil
}

// dynamicConfig keeps the server's limits on payloads and histories, so that
// what runs here runs in production, and departs from its defaults only where
// they are made for a fleet.
func dynamicConfig() dynamicconfig.StaticClient {
	return dynamicconfig.StaticClient{
		// Pause and unpause of a workflow, off by default.
		dynamicconfig.WorkflowPauseEnabled.Key(): true,
		// A search attribute can be used as soon as it has been registered.
		dynamicconfig.ForceSearchAttributesCacheRefreshOnRead.Key(): true,
		// One process gains nothing from partitions, and polls each of them.
		dynamicconfig.MatchingNumTaskqueueReadPartitions.Key():  1,
		dynamicconfig.MatchingNumTaskqueueWritePartitions.Key(): 1,
		// A UI that refreshes and tests that list workflows run into the default of 10.
		dynamicconfig.FrontendMaxNamespaceVisibilityRPSPerInstance.Key(): 200,
		// The default (128000 mutable states) is sized for a fleet.
		dynamicconfig.HistoryCacheHostLevelMaxSize.Key(): 2048,
	}
}

func newUI(o options) *uiserver.Server {
	return uiserver.NewServer(uioptions.WithConfigProvider(&uiconfig.Config{
		Host:                o.ip,
		Port:                o.uiPort,
		TemporalGRPCAddress: net.JoinHostPort(o.ip, strconv.Itoa(o.frontendPort)),
		EnableUI:            true,
		DefaultNamespace:    namespace,
		DisableNewsFetch:    true,
		CORS:                uiconfig.CORS{CookieInsecure: true}, // plain http on loopback
		HideLogs:            true,
	}))
}

// awaitServing returns when the UI can show the namespace, which proves UI,
// frontend and database at once, or when ctx ends.
func awaitServing(ctx context.Context, o options) error {
	url := fmt.Sprintf("http://%s/api/v1/namespaces/%s", net.JoinHostPort(o.ip, strconv.Itoa(o.uiPort)), namespace)
	for {
		if serves(ctx, url) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func serves(ctx context.Context, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err == nil && resp.StatusCode == http.StatusOK
}

// freePorts asks the kernel for n ports on loopback. They are held together
// until all are known, so that they differ.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", net.JoinHostPort(loopback, "0"))
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
