BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('v3.2.0.a');
CREATE TABLE studies (
	study_id INTEGER NOT NULL, 
	study_name VARCHAR(512) NOT NULL, 
	PRIMARY KEY (study_id)
);
INSERT INTO "studies" VALUES(1,'octavo');
CREATE TABLE study_directions (
	study_direction_id INTEGER NOT NULL, 
	direction VARCHAR(8) NOT NULL, 
	study_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	PRIMARY KEY (study_direction_id), 
	UNIQUE (study_id, objective), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_directions" VALUES(1,'MAXIMIZE',1,0);
INSERT INTO "study_directions" VALUES(2,'MINIMIZE',1,1);
CREATE TABLE study_system_attributes (
	study_system_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_system_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
CREATE TABLE study_user_attributes (
	study_user_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_user_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_user_attributes" VALUES(1,1,'octavo:schema','1');
INSERT INTO "study_user_attributes" VALUES(2,1,'octavo:fingerprint','{"model": "e310eb536a4831b6", "data": "37f35fb6bb2fa48b", "space": "[\"1579d058a6e97345\",\"00d4b3529ed45f89\"]", "goal": "[{\"tolerance\":0.05},[\"size\"]]", "objectives": "{\"size\":{}}", "holdout": "{\"holdout_fn\":false}", "samples": "{}", "racing": "{}", "versions": "{\"numpy\":{\"blas\":\"Haswell\",\"numpy\":\"2.4.6\"},\"octavo\":\"0.1.0\",\"onnx\":{\"onnx\":\"1.23.2\",\"onnxruntime\":\"1.32.0\"}}", "machine": "{\"architecture\":\"x86_64\",\"devices\":{\"numpy\":\"cpu\",\"onnx\":\"cpu\"},\"instructions\":[\"avx2\"]}"}');
INSERT INTO "study_user_attributes" VALUES(3,1,'octavo:settings','{"rules": [], "transforms": null, "simulated": false, "backends": ["numpy"], "strategy": "basic"}');
INSERT INTO "study_user_attributes" VALUES(4,1,'octavo:samples','null');
INSERT INTO "study_user_attributes" VALUES(5,1,'octavo:guard:began','true');
INSERT INTO "study_user_attributes" VALUES(6,1,'octavo:guard:done','true');
CREATE TABLE trial_heartbeats (
	trial_heartbeat_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	heartbeat DATETIME NOT NULL, 
	PRIMARY KEY (trial_heartbeat_id), 
	UNIQUE (trial_id), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_intermediate_values (
	trial_intermediate_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	intermediate_value FLOAT, 
	intermediate_value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_intermediate_value_id), 
	UNIQUE (trial_id, step), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_params (
	param_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	param_name VARCHAR(512), 
	param_value FLOAT, 
	distribution_json TEXT, 
	PRIMARY KEY (param_id), 
	UNIQUE (trial_id, param_name), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_system_attributes (
	trial_system_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_system_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_user_attributes (
	trial_user_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_user_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_user_attributes" VALUES(1,1,'octavo:recipe','"a7d996d898abc577"');
INSERT INTO "trial_user_attributes" VALUES(2,1,'octavo:process','{"host": "vm", "boot": "b91d1b17-4578-4826-ac34-aebf8a4e31c3", "pid": 30685, "faults": "numpy.db.faults", "starved": 0}');
INSERT INTO "trial_user_attributes" VALUES(3,1,'octavo:trial','"{\"number\": 0, \"recipe\": {\"backend\": \"numpy\", \"transforms\": [], \"schemes\": {}, \"ops\": {}}, \"state\": \"complete\", \"metrics\": {\"score\": 1.0}, \"passed\": true, \"margin\": 1.0, \"objectives\": {\"size\": [4749.0, 4749.0, 4749.0, \"bytes\", 1.0, true]}, \"ledger\": {}, \"over\": {}, \"error\": \"\", \"seconds\": {\"evaluate\": 0.0068672039997181855, \"measure\": 0.0014539040003000991}, \"evaluated\": 1.0, \"reused\": null, \"refused\": \"\", \"runs\": 2, \"noise\": 0.0}"');
INSERT INTO "trial_user_attributes" VALUES(4,2,'octavo:recipe','"48ce3901569b781e"');
INSERT INTO "trial_user_attributes" VALUES(5,2,'octavo:process','{"host": "vm", "boot": "b91d1b17-4578-4826-ac34-aebf8a4e31c3", "pid": 30685, "faults": "numpy.db.faults", "starved": 0}');
INSERT INTO "trial_user_attributes" VALUES(6,2,'octavo:trial','"{\"number\": 1, \"recipe\": {\"backend\": \"numpy\", \"transforms\": [], \"schemes\": {\"static w:int8/channel x:uint8-asym/tensor #cd107f\": {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\", \"granularity\": \"channel\"}, \"input\": {\"dtype\": \"uint8\", \"symmetric\": false}}}, \"ops\": {\"fc0\": \"static w:int8/channel x:uint8-asym/tensor #cd107f\", \"fc1\": \"static w:int8/channel x:uint8-asym/tensor #cd107f\", \"fc2\": \"static w:int8/channel x:uint8-asym/tensor #cd107f\"}}, \"state\": \"complete\", \"metrics\": {\"score\": 0.953125}, \"passed\": true, \"margin\": 0.06250000000000006, \"objectives\": {\"size\": [2502.0, 2502.0, 2502.0, \"bytes\", 0.5268477574226152, true]}, \"ledger\": {\"fc0\": [\"kernel\", \"\", null], \"fc1\": [\"kernel\", \"\", null], \"fc2\": [\"kernel\", \"\", null]}, \"over\": {}, \"error\": \"\", \"seconds\": {\"apply\": 0.007179567999628489, \"evaluate\": 0.0013505499991879333, \"measure\": 0.006098922000091989}, \"evaluated\": 1.0, \"reused\": null, \"refused\": \"\", \"runs\": 1, \"noise\": 0.0}"');
INSERT INTO "trial_user_attributes" VALUES(7,3,'octavo:recipe','"10405c0112e94372"');
INSERT INTO "trial_user_attributes" VALUES(8,3,'octavo:process','{"host": "vm", "boot": "b91d1b17-4578-4826-ac34-aebf8a4e31c3", "pid": 30685, "faults": "numpy.db.faults", "starved": 0}');
INSERT INTO "trial_user_attributes" VALUES(9,3,'octavo:trial','"{\"number\": 2, \"recipe\": {\"backend\": \"numpy\", \"transforms\": [], \"schemes\": {\"static w:int8/channel x:int8/tensor #03c496\": {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\", \"granularity\": \"channel\"}, \"input\": {\"dtype\": \"int8\"}}}, \"ops\": {\"fc0\": \"static w:int8/channel x:int8/tensor #03c496\", \"fc1\": \"static w:int8/channel x:int8/tensor #03c496\", \"fc2\": \"static w:int8/channel x:int8/tensor #03c496\"}}, \"state\": \"complete\", \"metrics\": {\"score\": 0.953125}, \"passed\": true, \"margin\": 0.06250000000000006, \"objectives\": {\"size\": [2473.0, 2473.0, 2473.0, \"bytes\", 0.5207412086755107, true]}, \"ledger\": {\"fc0\": [\"kernel\", \"\", null], \"fc1\": [\"kernel\", \"\", null], \"fc2\": [\"kernel\", \"\", null]}, \"over\": {}, \"error\": \"\", \"seconds\": {\"apply\": 0.005894750000152271, \"evaluate\": 0.0015473980001843302, \"measure\": 0.005722989999412675}, \"evaluated\": 1.0, \"reused\": null, \"refused\": \"\", \"runs\": 1, \"noise\": 0.0}"');
INSERT INTO "trial_user_attributes" VALUES(10,4,'octavo:recipe','"3bd131e1bf2b6ab9"');
INSERT INTO "trial_user_attributes" VALUES(11,4,'octavo:process','{"host": "vm", "boot": "b91d1b17-4578-4826-ac34-aebf8a4e31c3", "pid": 30685, "faults": "numpy.db.faults", "starved": 0}');
INSERT INTO "trial_user_attributes" VALUES(12,4,'octavo:trial','"{\"number\": 3, \"recipe\": {\"backend\": \"numpy\", \"transforms\": [], \"schemes\": {\"static w:int8/tensor x:uint8-asym/tensor #5671ea\": {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\"}, \"input\": {\"dtype\": \"uint8\", \"symmetric\": false}}}, \"ops\": {\"fc0\": \"static w:int8/tensor x:uint8-asym/tensor #5671ea\", \"fc1\": \"static w:int8/tensor x:uint8-asym/tensor #5671ea\", \"fc2\": \"static w:int8/tensor x:uint8-asym/tensor #5671ea\"}}, \"state\": \"complete\", \"metrics\": {\"score\": 0.96875}, \"passed\": true, \"margin\": 0.37500000000000006, \"objectives\": {\"size\": [2298.0, 2298.0, 2298.0, \"bytes\", 0.4838913455464308, true]}, \"ledger\": {\"fc0\": [\"kernel\", \"\", null], \"fc1\": [\"kernel\", \"\", null], \"fc2\": [\"kernel\", \"\", null]}, \"over\": {}, \"error\": \"\", \"seconds\": {\"apply\": 0.004219905000354629, \"evaluate\": 0.0012743480001518037, \"measure\": 0.0013658679999934975}, \"evaluated\": 1.0, \"reused\": null, \"refused\": \"\", \"runs\": 1, \"noise\": 0.0}"');
INSERT INTO "trial_user_attributes" VALUES(13,5,'octavo:recipe','"c8abe2c9838ac575"');
INSERT INTO "trial_user_attributes" VALUES(14,5,'octavo:process','{"host": "vm", "boot": "b91d1b17-4578-4826-ac34-aebf8a4e31c3", "pid": 30685, "faults": "numpy.db.faults", "starved": 0}');
INSERT INTO "trial_user_attributes" VALUES(15,5,'octavo:trial','"{\"number\": 4, \"recipe\": {\"backend\": \"numpy\", \"transforms\": [], \"schemes\": {\"static w:int8/tensor x:int8/tensor #ca088d\": {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\"}, \"input\": {\"dtype\": \"int8\"}}}, \"ops\": {\"fc0\": \"static w:int8/tensor x:int8/tensor #ca088d\", \"fc1\": \"static w:int8/tensor x:int8/tensor #ca088d\", \"fc2\": \"static w:int8/tensor x:int8/tensor #ca088d\"}}, \"state\": \"complete\", \"metrics\": {\"score\": 0.96875}, \"passed\": true, \"margin\": 0.37500000000000006, \"objectives\": {\"size\": [2275.0, 2275.0, 2275.0, \"bytes\", 0.4790482206780375, true]}, \"ledger\": {\"fc0\": [\"kernel\", \"\", null], \"fc1\": [\"kernel\", \"\", null], \"fc2\": [\"kernel\", \"\", null]}, \"over\": {}, \"error\": \"\", \"seconds\": {\"apply\": 0.0025316040009784047, \"evaluate\": 0.0018773339998006122, \"measure\": 0.004638334999981453}, \"evaluated\": 1.0, \"reused\": null, \"refused\": \"\", \"runs\": 1, \"noise\": 0.0}"');
CREATE TABLE trial_values (
	trial_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	value FLOAT, 
	value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_value_id), 
	UNIQUE (trial_id, objective), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_values" VALUES(1,1,0,1.0,'FINITE');
INSERT INTO "trial_values" VALUES(2,1,1,4749.0,'FINITE');
INSERT INTO "trial_values" VALUES(3,2,0,0.953125,'FINITE');
INSERT INTO "trial_values" VALUES(4,2,1,2502.0,'FINITE');
INSERT INTO "trial_values" VALUES(5,3,0,0.953125,'FINITE');
INSERT INTO "trial_values" VALUES(6,3,1,2473.0,'FINITE');
INSERT INTO "trial_values" VALUES(7,4,0,0.96875,'FINITE');
INSERT INTO "trial_values" VALUES(8,4,1,2298.0,'FINITE');
INSERT INTO "trial_values" VALUES(9,5,0,0.96875,'FINITE');
INSERT INTO "trial_values" VALUES(10,5,1,2275.0,'FINITE');
CREATE TABLE trials (
	trial_id INTEGER NOT NULL, 
	number INTEGER, 
	study_id INTEGER, 
	state VARCHAR(8) NOT NULL, 
	datetime_start DATETIME, 
	datetime_complete DATETIME, 
	PRIMARY KEY (trial_id), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "trials" VALUES(1,0,1,'COMPLETE','2026-11-27 14:05:51.822368','2026-11-27 14:05:51.936491');
INSERT INTO "trials" VALUES(2,1,1,'COMPLETE','2026-11-27 14:05:52.074685','2026-11-27 14:05:52.134394');
INSERT INTO "trials" VALUES(3,2,1,'COMPLETE','2026-11-27 14:05:52.142967','2026-11-27 14:05:52.232012');
INSERT INTO "trials" VALUES(4,3,1,'COMPLETE','2026-11-27 14:05:52.245346','2026-11-27 14:05:52.326750');
INSERT INTO "trials" VALUES(5,4,1,'COMPLETE','2026-11-27 14:05:52.344066','2026-11-27 14:05:52.429701');
CREATE TABLE version_info (
	version_info_id INTEGER NOT NULL, 
	schema_version INTEGER, 
	library_version VARCHAR(256), 
	PRIMARY KEY (version_info_id), 
	CHECK (version_info_id=1)
);
INSERT INTO "version_info" VALUES(1,12,'5.0.0');
CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name);
CREATE INDEX ix_trials_study_id ON trials (study_id);
COMMIT;
